"""What a decoder is: the contract between the models and everything that trains them, searches with them, serves them.

A decoder is a Flax module in a file of its own, listed in `capjax.models.DECODERS`. Its dataclass fields are the fields
of `config.decoder`; `vocab_size` and `dtype` are given to it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from capjax.ops.affine import affine
from capjax.types import Carry, Context, Features, RowKeys


class OutputProjection(NamedTuple):
    """The last layer, by which hidden states become logits: `hidden @ kernel + bias`.

    Parameters, or computed from parameters: with tied embeddings the kernel is the embedding's transpose.
    """

    kernel: Float[Array, "M V"]
    bias: Float[Array, " V"]

    def logits(self, hidden: Float[Array, "... M"]) -> Float[Array, "... V"]:
        """Compute float32 logits; the product runs in the dtype of `hidden`."""
        rows = affine(hidden.reshape(-1, hidden.shape[-1]), self.kernel, self.bias)
        return rows.reshape(*hidden.shape[:-1], -1)


class OutputLayer(nn.Module):
    """The parameters of a last layer of its own; calling it gives the `OutputProjection`."""

    input_size: int
    vocab_size: int

    @nn.compact
    def __call__(self) -> OutputProjection:
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (self.input_size, self.vocab_size))
        return OutputProjection(kernel, self.param("bias", nn.initializers.zeros, (self.vocab_size,)))


class DecoderOutput(NamedTuple):
    """What a decoder computes of captions under teacher forcing.

    Attributes:
        hidden: what enters the last layer where the next word is predicted.
        projection: the last layer, which the loss may fuse with itself.
        extras: anything else worth looking at, by name, leading axis B: attention maps. Who does not ask for them does
            not pay for them, since XLA leaves out what nobody reads.
        penalties: regularisers by name, one number in nats a caption, which training adds to the cross-entropy of its
            words.
    """

    hidden: Float[Array, "B L M"]
    projection: OutputProjection
    extras: Mapping[str, Array] = {}
    penalties: Mapping[str, Float[Array, " B"]] = {}

    @property
    def logits(self) -> Float[Array, "B L V"]:
        """The float32 logits of every next word; position l predicts the word after `tokens[:, l]`."""
        return self.projection.logits(self.hidden)


class Decoder(Protocol):
    """What every decoder offers."""

    def start(self, features: Features) -> tuple[Context, Carry]:
        """Look at N images: what stays as it is while captions are written, and the state before the first word."""
        ...

    def decode_step(
        self, context: Context, carry: Carry, tokens: Int[Array, " B"]
    ) -> tuple[Carry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word.

        B is a multiple of the context's N: captions B/N·n … B/N·(n+1)-1 belong to image n. The context is not repeated
        for them: beams of an image share its grid.
        """
        ...

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing over captions without their last id, B a multiple of the N images.

        `keys` given means training: dropout acts.
        """
        ...


def per_caption(tree: Any, num_captions: int) -> Any:
    """Repeat the leading axis of every leaf from N images to `num_captions`, those of one image beside each other."""
    return jax.tree.map(lambda x: jnp.repeat(x, num_captions // x.shape[0], axis=0), tree)
