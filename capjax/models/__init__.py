"""Encoders and decoders as Flax modules. A new decoder is a file here and a line in `DECODERS`."""

import inspect

import flax.linen as nn

from capjax.errors import CapjaxError
from capjax.models.captioner import Captioner
from capjax.models.init_inject import InitInjectDecoder

DECODERS: dict[str, type[nn.Module]] = {"init_inject": InitInjectDecoder}


def build_decoder(name: str, **settings: object) -> nn.Module:
    """Make a decoder from its name in `DECODERS` and its attributes.

    Raises:
        CapjaxError: if there is no decoder of that name or it has no such attribute.
    """
    if name not in DECODERS:
        raise CapjaxError(f"expected decoder.name out of {sorted(DECODERS)}, got {name!r}")
    known = set(inspect.signature(DECODERS[name]).parameters) - {"parent", "name"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise CapjaxError(f"decoder {name!r} has no setting {unknown[0]!r}; it has {sorted(known)}")
    return DECODERS[name](**settings)


__all__ = ["DECODERS", "Captioner", "InitInjectDecoder", "build_decoder"]
