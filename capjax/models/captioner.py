"""Encoder and decoder as one module: the function from an image to a sentence's probabilities."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, UInt8

from capjax.models.decoder import DecoderOutput
from capjax.types import Carry, Context, DecodeStep, Features, RowKeys

Images = Float[Array, "N H W C"] | UInt8[Array, "N H W C"]


class Captioner(nn.Module):
    """A CNN-to-RNN captioner; variables sit under `encoder` and `decoder`.

    Attributes:
        decoder: a module that follows `capjax.models.decoder.Decoder`.
        encoder: maps images to `Features`; None for a captioner that is only ever fed cached features.
        freeze_encoder: cut the gradient at the features.
        train_batch_norm: let the encoder's BatchNorm use and update batch statistics in training.
    """

    decoder: nn.Module
    encoder: nn.Module | None = None
    freeze_encoder: bool = True
    train_batch_norm: bool = False

    @property
    def max_length(self) -> int | None:
        """Words that a caption may have at most, for which the decoder was built; None for any number."""
        return getattr(self.decoder, "max_length", None)

    def encode(self, images: Images, train: bool = False) -> Features:
        """Compute the features of a batch of images."""
        features = self.encoder(images, train=train and self.train_batch_norm)
        return jax.lax.stop_gradient(features) if self.freeze_encoder else features

    def start(self, inputs: Images | Features) -> tuple[Context, Carry]:
        """Look at N images or their features; return the decoder's context and its state before the first word."""
        return self.decoder.start(inputs if isinstance(inputs, Features) else self.encode(inputs))

    def decode_step(
        self, context: Context, carry: Carry, tokens: Int[Array, " B"]
    ) -> tuple[Carry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        return self.decoder.decode_step(context, carry, tokens)

    def __call__(
        self, inputs: Images | Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None
    ) -> DecoderOutput:
        """Run under teacher forcing.

        Args:
            inputs: N images or their features. B must be a multiple of N: captions B/N·n … B/N·(n+1)-1 belong to
                image n, which is encoded once.
            tokens: the captions without their last id.
            keys: one per caption in training, for dropout (BatchNorm may then be trained); None in evaluation.
        """
        features = inputs if isinstance(inputs, Features) else self.encode(inputs, train=keys is not None)
        return self.decoder(features, tokens, keys)


def begin_search(
    model: Captioner, variables: Mapping[str, Any], inputs: Images | Features, max_length: int
) -> tuple[DecodeStep, Carry]:
    """Look at N images; return what searches for captions of up to `max_length` words step with, and from where."""
    if hasattr(model.decoder, "cache_length"):  # it remembers all words
        model = model.clone(decoder=model.decoder.clone(cache_length=max_length))
    context, carry = model.apply(variables, inputs, method="start")
    return partial(model.apply, variables, context, method="decode_step"), carry
