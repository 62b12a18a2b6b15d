"""Configurations are read, changed and stored here; what they hold is in `fields.py`, what that may be in `checks.py`.

A recipe under configs/ starts from `default_config()` and changes what it means to change. The ConfigDict is locked: a
field that does not exist is an error that names the nearest one.
"""

import argparse
import ast
import difflib
import importlib.util
import inspect
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from capjax import __version__
from capjax.config.checks import check
from capjax.config.fields import OF_DRAWN_ENCODERS, PATHS, decoder_config, default_config, flat
from capjax.errors import CapjaxError

__all__ = [
    "add_config_arguments",
    "changed",
    "changes",
    "check",
    "decoder_config",
    "default_config",
    "from_dict",
    "load_config",
    "to_dict",
]


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read a configuration file and apply `section.field=value` overrides.

    Args:
        spec: `FILE` or `FILE:ARGUMENT`, a Python file whose `get_config(arg)` returns a ConfigDict. A bare name means
            the file of that name among the recipes that come with capjax.
        overrides: assignments such as `train.num_steps=100`.

    Raises:
        CapjaxError: if the file is missing or broken, or an override does not fit.
    """
    file, _, argument = spec.partition(":")
    path = pathlib.Path(os.path.expanduser(file))
    if not path.suffix:
        path = _recipes() / f"{file}.py"
    if not path.is_file():
        known = sorted(p.stem for p in _recipes().glob("*.py"))
        raise CapjaxError(f"expected a configuration, a Python file or a recipe out of {known}, got {file!r}")
    module_spec = importlib.util.spec_from_file_location(f"capjax_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        takes_argument = bool(inspect.signature(module.get_config).parameters)
        if argument and not takes_argument:
            raise CapjaxError(f"the configuration {file} takes no argument, got {argument!r}")
        config = module.get_config(argument) if argument else module.get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"it returned {type(config).__name__}; does it end with `return config`?")
    except CapjaxError:
        raise
    except Exception as error:  # it is anybody's program
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CapjaxError(f"expected {file} to define get_config() -> ConfigDict, got {reason}") from None
    if "recipe" in config:
        config.recipe = ":".join(filter(None, (path.stem, argument)))
    return changed(config, overrides)


def changed(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Return a configuration with some fields changed, checked.

    Args:
        config: is left as it is.
        overrides: assignments such as `train.num_steps=100`.

    Raises:
        CapjaxError: if an override does not fit, or the values make no sense together.
    """
    config = config.copy_and_resolve_references()
    # Another decoder brings its own fields, which further overrides may set.
    for override in sorted(overrides, key=lambda override: not override.startswith("decoder.name=")):
        _apply(config, override)
    for name in PATHS:  # of a recipe, whose ~ no shell has seen
        section, field = name.split(".")
        if isinstance(config.get(section, {}).get(field), str):
            config[section][field] = os.path.expanduser(config[section][field])
    check(config)
    return config.lock()


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--config`; the command line collects `--config.field=value` overrides in `args.overrides`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a configuration file or the name of a recipe; --config.SECTION.FIELD=VALUE changes a field",
    )


def _recipes() -> pathlib.Path:
    """Find configs/: beside the package in a checkout, inside it when installed."""
    package = pathlib.Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.partition("=")
    known = sorted(flat(config))
    if not equals:
        raise CapjaxError(f"expected an override like --config.{name}=VALUE, got no value")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near = near or [field for field in known if field.split(".")[-1] == name.split(".")[-1]]
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; fields are {', '.join(known)}"
        raise CapjaxError(f"the configuration has no field {name!r}{hint}")
    if name == "decoder.name" and text != config.decoder.name:
        with config.unlocked():
            config.decoder = decoder_config(text)
        return
    section, _, field = name.rpartition(".")
    parent = config
    for part in filter(None, section.split(".")):
        parent = parent[part]
    parent[field] = _parse(name, text, parent[field])


def _parse(name: str, text: str, old: Any) -> Any:
    """Read `text` as a value of the type of `old`."""
    if isinstance(old, str):
        return os.path.expanduser(text)  # no shell does so in the middle of a word
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
    except (ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):  # the last two if it is nested
        value = text
    if type(value) is not type(old):
        raise CapjaxError(f"expected --config.{name} to be {type(old).__name__} like {old!r}, got {text!r}")
    return value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Turn a configuration into plain JSON values."""
    return json.loads(config.to_json_best_effort())


def changes(config: ConfigDict) -> dict[str, Any]:
    """Return what a configuration changes of the defaults, by `section.field`; of its decoder, by that one's own."""
    usual = default_config()
    with usual.unlocked():
        usual.decoder = decoder_config(config.decoder.name)
    defaults = flat(usual) | {"decoder.name": None}
    return {name: value for name, value in flat(config).items() if value != defaults[name]}


def from_dict(values: Mapping[str, Any], where: str) -> ConfigDict:
    """Restore a configuration that was stored as JSON; fields that are newer than it have their defaults.

    Args:
        values: what `to_dict` gave, in this version of capjax or an older one.
        where: the file they come from, for messages.

    Raises:
        CapjaxError: if a field is unknown to this version, or holds something else than it should.
    """
    config = default_config()
    decoder = values.get("decoder")
    name = decoder.get("name") if isinstance(decoder, Mapping) else "init_inject"
    if not isinstance(name, str):
        raise CapjaxError(f"expected decoder.name in {where} to be the name of a decoder, got {name!r}")
    with config.unlocked():
        config.decoder = decoder_config(name)
    _merge(config, values, where)
    if config.encoder.weights not in ("", "random"):
        # Older versions took these, and did not look at them.
        usual = default_config().encoder
        config.encoder.update({field: usual[field] for field in OF_DRAWN_ENCODERS})
    return config.lock()


def _merge(config: ConfigDict, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for name, value in values.items():
        if name not in config:
            raise CapjaxError(
                f"the configuration in {where} has a field {prefix}{name}, which capjax {__version__} does not know; "
                "use the capjax that wrote it"
            )
        is_section = isinstance(config[name], ConfigDict)
        expected = "a section" if is_section else f"like {config[name]!r}"
        try:
            if is_section != isinstance(value, Mapping) or value is None:  # which a ConfigDict takes for anything
                raise TypeError
            if is_section:
                _merge(config[name], value, where, f"{prefix}{name}.")
            else:
                config[name] = value
        except TypeError:
            raise CapjaxError(f"expected {prefix}{name} in {where} to be {expected}, got {value!r}") from None
