"""Decoder settings: one validated description of a search, and `build_search`, which turns it into the search.

Configs, command-line flags and `metrics.json` all speak these field names.
"""

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, Key

from capjax.decoding.beam_search import BestSelector, Selector, Watch, beam_search
from capjax.decoding.constrained_beam_search import ConstrainedSelector
from capjax.decoding.diverse_beam_search import DiverseSelector
from capjax.decoding.greedy import greedy_search
from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.length_penalty import LengthPenalty
from capjax.decoding.logits_processors import (
    LogitsProcessor,
    forbid_repeated_ngrams,
    forbid_tokens,
    keep_top_k,
    keep_top_p,
    require_min_length,
    scale_temperature,
)
from capjax.decoding.sampling import sample
from capjax.errors import CapjaxError
from capjax.types import Carry, DecodeStep, SpecialIds

Search = Callable[[DecodeStep, Carry, Key[Array, " B"] | None], Hypotheses]
"""(decode_step, initial carry, random keys or None) -> captions; traceable, so that callers jit it with their model."""

METHODS = ("greedy", "sample", "beam", "diverse_beam")
_ALL, _SAMPLE, _BEAM, _DIVERSE = METHODS, ("sample",), ("beam", "diverse_beam"), ("diverse_beam",)
_MOST = 10_000  # words, beams and captions; more would fill the memory
_MAX_CONSTRAINTS = 4  # a beam for each of their 2^4 subsets


def _setting(default: Any, methods: tuple[str, ...], text: str) -> Any:
    return field(default=default, metadata={"methods": methods, "help": text})


@dataclass(frozen=True)
class DecoderSettings:
    """How captions are searched for. Fields that the method does not use stay at their defaults.

    Raises:
      CapjaxError: a value out of range, or fields that make no sense together.
    """

    method: str = _setting("greedy", _ALL, "greedy, sample, beam or diverse_beam")
    max_length: int = _setting(20, _ALL, "words per caption at most; one that comes to its end needs a place for that")
    min_length: int = _setting(0, _ALL, "words per caption at least")
    no_repeat_ngram_size: int = _setting(0, _ALL, "no n-gram of this size occurs twice in a caption; 0: no limit")
    allow_unk: bool = _setting(False, _ALL, "let the search take the unknown word, which is not shown")
    must_not_contain: tuple[str | int, ...] = _setting(
        (), _ALL, "words that no caption contains, with commas between them"
    )
    num_captions: int = _setting(1, (*_SAMPLE, *_BEAM), "captions per image, best first")
    seed: int = _setting(0, _SAMPLE, "seed of the samples; with the image id it fixes a caption")
    temperature: float = _setting(1.0, _SAMPLE, "below 1 sharpens the distribution, above 1 flattens it")
    top_k: int = _setting(0, _SAMPLE, "sample among the k most probable words; 0: all")
    top_p: float = _setting(1.0, _SAMPLE, "sample among the most probable words that make up this probability")
    beam_size: int = _setting(3, _BEAM, "beams per image (of all groups together)")
    length_penalty: float = _setting(0.0, _BEAM, "alpha of the length penalty; 0: rank by log-probability")
    length_formula: str = _setting("gnmt", _BEAM, "gnmt: ((5 + n) / 6)^alpha; plain: n^alpha")
    must_contain: tuple[str | int | tuple[str | int, ...], ...] = _setting(
        (), _BEAM, "words that every caption contains, with commas between them; dog|puppy for either"
    )
    num_groups: int = _setting(3, _DIVERSE, "groups that the beams are divided into")
    diversity_strength: float = _setting(0.5, _DIVERSE, "penalty for each earlier group that says the same word")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CapjaxError(_unknown("decoding method", self.method, METHODS))
        for setting in dataclasses.fields(self):
            methods = setting.metadata["methods"]
            if self.method not in methods and getattr(self, setting.name) != setting.default:
                raise CapjaxError(
                    f"{setting.name} has no meaning for method={self.method}: "
                    f"leave it out, or set method to {' or '.join(methods)}"
                )
        self._check_ranges()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DecoderSettings":
        """Build settings from a mapping; see `updated` for what is understood.

        Raises:
          CapjaxError: an unknown field (with the near names), a value out of range, fields that exclude each other.
        """
        return cls().updated(values)

    def updated(self, changes: Mapping[str, Any]) -> "DecoderSettings":
        """Return these settings with `changes` made; None means unchanged.

        Without a method among the changes, one that they need is chosen: beam_size=5 asks for beam search. Fields of
        the former method that the new one does not use return to their defaults. Words come as lists, or as a string
        with commas.

        Raises:
          CapjaxError: as for `from_dict`.
        """
        settings = {setting.name: setting for setting in dataclasses.fields(self)}
        for name in changes:
            if name not in settings:
                raise CapjaxError(_unknown("decoder setting", name, tuple(settings)))
        changes = {name: _checked(settings[name], value) for name, value in changes.items() if value is not None}
        needed = [settings[name].metadata["methods"] for name in changes]
        implied = next((methods[0] for methods in (_DIVERSE, _BEAM, _SAMPLE) if methods in needed), self.method)
        fits = all(self.method in methods for methods in needed)
        method = changes.get("method", self.method if fits else implied)
        if method not in METHODS:
            raise CapjaxError(_unknown("decoding method", method, METHODS))
        kept = {
            name: getattr(self, name) for name, setting in settings.items() if method in setting.metadata["methods"]
        }
        return DecoderSettings(**{**kept, **changes, "method": method})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that the method uses, ready for JSON; `from_dict` restores them."""
        return {
            setting.name: getattr(self, setting.name)
            for setting in dataclasses.fields(self)
            if self.method in setting.metadata["methods"]
        }

    def told(self) -> str:
        """Name the method and what was set beside it, for people."""
        usual = DecoderSettings(self.method).to_dict()
        changed = (name for name, value in self.to_dict().items() if value != usual[name] or name == "beam_size")
        return ", ".join([self.method, *(f"{name} {_told(getattr(self, name))}" for name in changed)])

    def with_token_ids(self, token_ids: Mapping[str, int], unused_ids: Iterable[int] = ()) -> "DecoderSettings":
        """Return the settings with the words of `must_contain` and `must_not_contain` replaced by their token ids.

        Args:
          token_ids: the vocabulary, word -> id.
          unused_ids: its entries that are no words, which must not be contained either.

        Raises:
          CapjaxError: a word, or an id, that is not in the vocabulary.
        """

        known = set(token_ids.values())

        def resolve(word: str | int) -> int:
            if isinstance(word, str) and word not in token_ids:
                raise CapjaxError(_unknown("word (not in the vocabulary)", word, tuple(token_ids)))
            if isinstance(word, int) and word not in known:
                raise CapjaxError(
                    f"expected ids of words of the vocabulary, from {min(known)} to {max(known)}, got {word}"
                )
            return token_ids[word] if isinstance(word, str) else word

        return dataclasses.replace(
            self,
            must_not_contain=(*(resolve(word) for word in self.must_not_contain), *unused_ids),
            must_contain=tuple(tuple(resolve(word) for word in _alternatives(item)) for item in self.must_contain),
        )

    def _check_ranges(self) -> None:
        _require(1 <= self.max_length <= _MOST, f"max_length lies in 1..{_MOST}", self.max_length)
        _require(0 <= self.min_length <= self.max_length, "min_length lies in 0..max_length", self.min_length)
        ngram_size = self.no_repeat_ngram_size
        _require(0 <= ngram_size <= _MOST, f"no_repeat_ngram_size lies in 0..{_MOST}", ngram_size)
        _require(1 <= self.num_captions <= _MOST, f"num_captions lies in 1..{_MOST}", self.num_captions)
        _require(0 <= self.seed < 2**32, "seed lies in 0..2^32-1", self.seed)
        _require(
            1e-3 <= self.temperature <= 1e3, "temperature lies in 0.001..1000 (for 0 use greedy)", self.temperature
        )
        _require(0 <= self.top_k < 2**31, "top_k lies in 0..2^31-1", self.top_k)
        _require(0 < self.top_p <= 1, "top_p lies in (0, 1]", self.top_p)
        _require(1 <= self.beam_size <= _MOST, f"beam_size lies in 1..{_MOST}", self.beam_size)
        # At far larger ones what scores are divided by leaves the range of float32.
        _require(abs(self.length_penalty) <= 10, "length_penalty lies in -10..10", self.length_penalty)
        if self.length_formula not in ("gnmt", "plain"):
            raise CapjaxError(_unknown("length_formula", self.length_formula, ("gnmt", "plain")))
        strength = self.diversity_strength
        _require(0 <= strength < math.inf, "diversity_strength is 0 or more, and finite", strength)
        if self.method in _BEAM:
            groups = self.num_groups if self.method == "diverse_beam" else 1
            _require(
                groups >= 1 and self.beam_size % groups == 0, f"num_groups divides beam_size ({self.beam_size})", groups
            )
            _require(
                self.num_captions <= self.beam_size,
                f"num_captions is at most beam_size ({self.beam_size})",
                self.num_captions,
            )
        limit = min(_MAX_CONSTRAINTS, self.max_length)
        _require(len(self.must_contain) <= limit, f"must_contain names at most {limit} words", len(self.must_contain))
        contradictory = [item for item in self.must_contain if set(_alternatives(item)) <= set(self.must_not_contain)]
        if contradictory:
            raise CapjaxError(f"must_contain and must_not_contain both name {contradictory[0]!r}: drop it from one")


def build_search(settings: DecoderSettings, special_ids: SpecialIds, watch: Watch | None = None) -> Search:
    """Return the search that the settings describe.

    It is to be called inside the caller's `jax.jit`, together with the model:
    `jax.jit(lambda variables, carry, keys: search(partial(step, variables), carry, keys))`. Everything has static
    shapes, and a `lax.while_loop` ends when all sentences have. Batches sharded over devices work as they are; under
    `jax.shard_map(..., check_vma=False)` over the batch the devices do not communicate at all, and each ends by itself.

    Args:
      settings: words already replaced by ids (`DecoderSettings.with_token_ids`).
      special_ids: ids of PAD, UNK, START and END; PAD and START never occur in a caption, UNK only if allowed.
      watch: of a search with beams, see `beam_search`.

    Raises:
      CapjaxError: words left in the settings, special ids among required words; at trace time, ids outside the
        model's vocabulary, or no keys for sampling.
    """
    constraints = tuple(_alternatives(item) for item in settings.must_contain)
    words = [word for word in (*settings.must_not_contain, *sum(constraints, ())) if isinstance(word, str)]
    if words:
        raise CapjaxError(f"expected token ids, got the word {words[0]!r}: call settings.with_token_ids first")
    never = {special_ids.pad, special_ids.start} | (set() if settings.allow_unk else {special_ids.unk})
    unsayable = (never | {special_ids.end}) & {token for alternatives in constraints for token in alternatives}
    if unsayable:
        raise CapjaxError(f"must_contain takes words of a caption, got special token ids {sorted(unsayable)}")
    if special_ids.end in settings.must_not_contain:
        raise CapjaxError("must_not_contain takes words of a caption, got END: raise min_length for longer captions")

    processors: list[LogitsProcessor] = [forbid_tokens(sorted(never | set(settings.must_not_contain)))]
    if settings.min_length:
        processors.append(require_min_length(settings.min_length, special_ids.end))
    if settings.no_repeat_ngram_size:
        processors.append(forbid_repeated_ngrams(settings.no_repeat_ngram_size))
    if settings.method == "greedy":
        return lambda decode_step, carry, keys=None: greedy_search(
            decode_step, carry, special_ids, max_length=settings.max_length, processors=processors
        )
    if settings.method == "sample":
        return _build_sampling(settings, special_ids, processors)
    return _build_beam_search(settings, special_ids, processors, constraints, watch)


def _build_sampling(settings: DecoderSettings, special_ids: SpecialIds, processors: list[LogitsProcessor]) -> Search:
    shaping = [scale_temperature(settings.temperature)]
    if settings.top_k:
        shaping.append(keep_top_k(settings.top_k))
    if settings.top_p < 1:
        shaping.append(keep_top_p(settings.top_p))

    def search(decode_step: DecodeStep, carry: Carry, keys: Key[Array, " B"] | None = None) -> Hypotheses:
        if keys is None:
            raise CapjaxError("sampling needs one random key per image: pass image_keys(settings.seed, image_ids)")
        return sample(
            decode_step,
            carry,
            special_ids,
            keys,
            max_length=settings.max_length,
            num_captions=settings.num_captions,
            processors=(*processors, *shaping),
        )

    return search


def _build_beam_search(
    settings: DecoderSettings,
    special_ids: SpecialIds,
    processors: list[LogitsProcessor],
    constraints: tuple[tuple[int, ...], ...],
    watch: Watch | None,
) -> Search:
    num_groups = settings.num_groups if settings.method == "diverse_beam" else 1
    group_size = settings.beam_size // num_groups
    selector: Selector = BestSelector(group_size)
    if constraints:
        selector = ConstrainedSelector(group_size, constraints, special_ids.end)
    if settings.method == "diverse_beam":
        selector = DiverseSelector(selector, num_groups, settings.diversity_strength)
    return lambda decode_step, carry, keys=None: beam_search(
        decode_step,
        carry,
        special_ids,
        selector=selector,
        max_length=settings.max_length,
        num_captions=settings.num_captions,
        length_penalty=LengthPenalty(settings.length_penalty, settings.length_formula),
        processors=processors,
        watch=watch,
    )


def _told(value: Any) -> str:
    """Print a setting for people, words as they are given on the command line."""
    if isinstance(value, tuple):
        return ",".join("|".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)


def _alternatives(item: str | int | tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return the alternatives of one required word: "dog|puppy" and ("dog", "puppy") are either, 17 is itself."""
    if isinstance(item, str):
        return tuple(word.strip() for word in item.split("|"))
    return item if isinstance(item, tuple) else (item,)


def _checked(setting: dataclasses.Field, value: Any) -> Any:
    """Return a value that came from a config or a flag with the type of its field, or refuse it."""
    if isinstance(setting.default, tuple):
        return _words(setting.name, value)
    kind = type(setting.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # no range admits so large a number
            value = float(value)
        return value
    if type(value) is not kind:
        raise CapjaxError(f"decoder setting {setting.name} is of type {kind.__name__}, got {value!r}")
    return value


def _words(name: str, value: Any) -> tuple:
    """Return the words of a setting as a tuple; a string is split at commas, lists within become tuples."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise CapjaxError(f"decoder setting {name} is a list of words or token ids, got {value!r}")
    words = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    for word in (word for item in words for word in (item if isinstance(item, tuple) else (item,))):
        if isinstance(word, bool) or not isinstance(word, str | int) or word == "":
            raise CapjaxError(f"decoder setting {name} is a list of words or token ids, got {word!r} in it")
    return words


def _require(holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise CapjaxError(f"decoder setting out of range: {rule}, got {value!r}")


def _unknown(kind: str, value: Any, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:20])}"
    return f"unknown {kind} {value!r}; {hint}"
