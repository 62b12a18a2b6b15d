"""Encoders and decoders as Flax modules. A new decoder is a file here and a line in `DECODERS`."""

import dataclasses
from typing import Any

import flax.linen as nn

from capjax.errors import CapjaxError
from capjax.models.att2in import Att2inDecoder
from capjax.models.captioner import Captioner, begin_search
from capjax.models.init_inject import InitInjectDecoder
from capjax.models.par_inject import ParInjectDecoder
from capjax.models.show_and_tell import ShowAndTellDecoder
from capjax.models.soft_attention import SoftAttentionDecoder
from capjax.models.transformer import TransformerDecoder
from capjax.models.up_down import UpDownDecoder

DECODERS: dict[str, type[nn.Module]] = {
    "init_inject": InitInjectDecoder,
    "show_and_tell": ShowAndTellDecoder,
    "par_inject": ParInjectDecoder,
    "soft_attention": SoftAttentionDecoder,
    "att2in": Att2inDecoder,
    "up_down": UpDownDecoder,
    "transformer": TransformerDecoder,
}

# Settings that a decoder's weights do not depend on.
TRAINING_ONLY = {"dropout_rate", "doubly_stochastic_weight"}

# Given to a decoder by whoever builds it or searches with it, or Flax's own.
_NOT_SETTINGS = {"vocab_size", "dtype", "cache_length", "parent", "name"}


def decoder_settings(name: str) -> dict[str, Any]:
    """Return the settings of a decoder with their defaults: the fields of its dataclass.

    Raises:
        CapjaxError: if there is no decoder of that name, or it has a field without a default.
    """
    if name not in DECODERS:
        raise CapjaxError(f"expected decoder.name out of {sorted(DECODERS)}, got {name!r}")
    settings = {
        field.name: field.default for field in dataclasses.fields(DECODERS[name]) if field.name not in _NOT_SETTINGS
    }
    if bare := [setting for setting, default in settings.items() if default is dataclasses.MISSING]:
        raise CapjaxError(
            f"expected a default for every field of the decoder {name!r}, got none for {bare[0]}; give it one, "
            "configurations begin with them"
        )
    return settings


def build_decoder(name: str, **settings: Any) -> nn.Module:
    """Make a decoder from its name in `DECODERS`, its settings, `vocab_size` and `dtype`.

    Raises:
        CapjaxError: if there is no decoder of that name or it has no such setting.
    """
    known = decoder_settings(name)
    unknown = sorted(set(settings) - set(known) - {"vocab_size", "dtype"})
    if unknown:
        raise CapjaxError(f"decoder {name!r} has no setting {unknown[0]!r}; it has {sorted(known)}")
    return DECODERS[name](**settings)


__all__ = [
    "DECODERS",
    "TRAINING_ONLY",
    "Captioner",
    "InitInjectDecoder",
    "begin_search",
    "build_decoder",
    "decoder_settings",
]
