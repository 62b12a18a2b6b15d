"""Encoder and decoder as one module: the function from an image to a sentence's probabilities."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from capjax.types import Carry, Features

Images = Float[Array, "N H W C"] | UInt8[Array, "N H W C"]


class Captioner(nn.Module):
    """A CNN-to-RNN captioner; variables sit under `encoder` and `decoder`.

    Attributes:
        decoder: any decoder of `capjax.models`: it offers `init_carry`, `decode_step`, teacher-forced `logit_inputs`
            and `__call__`, and its last layer is a Dense called `logits`.
        encoder: maps images to `Features`; None for a captioner that is only ever fed cached features.
        freeze_encoder: cut the gradient at the features.
        train_batch_norm: let the encoder's BatchNorm use and update batch statistics in training.
    """

    decoder: nn.Module
    encoder: nn.Module | None = None
    freeze_encoder: bool = True
    train_batch_norm: bool = False

    def encode(self, images: Images, train: bool = False) -> Features:
        """Compute the features of a batch of images."""
        features = self.encoder(images, train=train and self.train_batch_norm)
        return jax.lax.stop_gradient(features) if self.freeze_encoder else features

    def init_carry(self, features: Features) -> Carry:
        """Turn features into the decoder's initial state."""
        return self.decoder.init_carry(features)

    def decode_step(self, carry: Carry, tokens: Int[Array, " B"]) -> tuple[Carry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        return self.decoder.decode_step(carry, tokens)

    def __call__(
        self, inputs: Images | Features, tokens: Int[Array, "B L"], train: bool = False
    ) -> Float[Array, "B L V"]:
        """Compute the logits of every next word under teacher forcing.

        Args:
            inputs: N images or their features. B must be a multiple of N: captions B/N·n … B/N·(n+1)-1 belong to
                image n, which is encoded once.
            tokens: the captions without their last id.
            train: whether dropout acts and BatchNorm may be trained.
        """
        return self.decoder(self._features_per_caption(inputs, tokens, train), tokens, train=train)

    def logit_inputs(
        self, inputs: Images | Features, tokens: Int[Array, "B L"], train: bool = False
    ) -> Float[Array, "B L M"]:
        """Compute what enters the decoder's last layer, its Dense `logits`; arguments as of `__call__`."""
        return self.decoder.logit_inputs(self._features_per_caption(inputs, tokens, train), tokens, train=train)

    def _features_per_caption(self, inputs: Images | Features, tokens: Int[Array, "B L"], train: bool) -> Features:
        features = inputs if isinstance(inputs, Features) else self.encode(inputs, train)
        captions_per_image = tokens.shape[0] // features.pooled.shape[0]
        if captions_per_image > 1:
            features = jax.tree.map(lambda x: jnp.repeat(x, captions_per_image, axis=0), features)
        return features
