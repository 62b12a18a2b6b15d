"""Which searches may be asked for: fields of a request become `DecoderSettings`, within bounds."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from capjax.captioning.generator import search_function
from capjax.captioning.loaded_model import LoadedModel
from capjax.decoding.settings import METHODS, DecoderSettings
from capjax.errors import CapjaxError, printable
from capjax.serving.problems import Problem

EXPLAIN = "explain"
MOST = {"beam_size": 10, "num_captions": 10, "max_length": 40}
"""A search beyond would take the server from everybody else; its own settings may go further."""
_MAX_WORDS = 32
_TRUTHS = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


class SearchRules:
    """The searches of one server.

    Attributes:
        default: the search of requests that say nothing about it.
    """

    def __init__(self, model: LoadedModel, default: DecoderSettings) -> None:
        """Set the bounds.

        Raises:
            CapjaxError: if the model cannot be searched with `default`.
        """
        self._model, self.default = model, default
        self._most = {name: max(most, getattr(default, name)) for name, most in MOST.items()}
        longest = model.captioner.max_length
        if longest is not None:
            self._most["max_length"] = min(self._most["max_length"], longest)
        self._check(default)

    @property
    def longest(self) -> int:
        """The most tokens that a caption can have."""
        return self._most["max_length"]

    def read(self, fields: Mapping[str, str]) -> tuple[DecoderSettings, bool]:
        """Return the search that a request's fields ask for, and whether it wants an explanation.

        Raises:
            Problem: 422 for a field that does not exist, with near names, or a value that cannot be.
        """
        try:
            explain = _truth(EXPLAIN, fields.get(EXPLAIN, "false"))
            changes = {name: _value(name, text) for name, text in fields.items() if name != EXPLAIN}
            for name, most in self._most.items():
                if name in changes and changes[name] > most:
                    raise CapjaxError(f"expected {name} of at most {most} on this server, got {changes[name]}")
            settings = self.default.updated(changes)
            self._check(settings)
        except CapjaxError as error:
            raise Problem(422, str(error)) from None
        return settings, explain

    def fields(self) -> list[dict[str, Any]]:
        """Describe the fields: name, type, choices, default here, what they mean, for which methods, at most how much.

        The type is that of JSON Schema; words come as a string with commas.
        """
        kinds = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "string"}
        choices = {"method": METHODS, "length_formula": ("gnmt", "plain")}
        described = []
        for setting in dataclasses.fields(DecoderSettings):
            field = {"name": setting.name, "type": kinds[type(setting.default)], "help": setting.metadata["help"]}
            field |= {"methods": list(setting.metadata["methods"])}
            default = getattr(self.default, setting.name)
            field["default"] = ",".join(map(_joined, default)) if isinstance(default, tuple) else default
            if setting.name in choices:
                field["choices"] = list(choices[setting.name])
            if setting.name in self._most:
                field["most"] = self._most[setting.name]
            described.append(field)
        return described

    def _check(self, settings: DecoderSettings) -> None:
        """Refuse what would fail only once it is compiled.

        Raises:
            CapjaxError: if the model cannot be searched so.
        """
        words = sum(_joined(word).count("|") + 1 for word in (*settings.must_contain, *settings.must_not_contain))
        if words > _MAX_WORDS:
            raise CapjaxError(f"expected at most {_MAX_WORDS} words that must or must not occur, got {words}")
        search_function([self._model.captioner], self._model.vocabulary, settings)


def _value(name: str, text: str) -> Any:
    """Return the text of a field as a value of the field's type."""
    settings = {setting.name: setting for setting in dataclasses.fields(DecoderSettings)}
    if name not in settings:
        near = difflib.get_close_matches(name, [*settings, EXPLAIN], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join([*settings, EXPLAIN])}"
        raise CapjaxError(f"unknown field {printable(name[:50])!r}; {hint}")
    kind = type(settings[name].default)
    if kind is bool:
        return _truth(name, text)
    if kind not in (int, float):
        return text
    try:
        value = kind(text)
        is_number = math.isfinite(value)
    except (ValueError, OverflowError):
        is_number = False
    if not is_number:
        expected = "an integer" if kind is int else "a finite number"
        raise CapjaxError(f"expected {name} to be {expected}, got {printable(text[:50])!r}")
    return value


def _truth(name: str, text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise CapjaxError(f"expected {name} to be true or false, got {printable(text[:50])!r}")
    return _TRUTHS[text.lower()]


def _joined(word: Any) -> str:
    """Write a required word, or its alternatives, as a field has it."""
    return "|".join(map(str, word)) if isinstance(word, tuple) else str(word)
