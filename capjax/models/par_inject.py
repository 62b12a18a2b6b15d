"""The whole image beside every word ("par-inject", Tanti et al. 2018, https://arxiv.org/abs/1703.09137)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.decoder import DecoderOutput, OutputLayer, per_caption
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTMCarry, maxout_cell, scan_words, swap_time, zero_carry
from capjax.types import Features, RowKeys


class ParInjectDecoder(nn.Module):
    """Predicts a caption word by word from an LSTM that is shown the image, as one vector, with every word.

    Where the image enters is section 3.2 of the paper; how, and the cell, are those of Att2in (Rennie et al. 2017,
    see `att2in.py`) with nothing to choose from: the decoder that shows what attention adds to it. With I the embedded
    pooled features, x the last word and φ a maxout of two:

        I = relu(W p + b),    i, f, o = σ(W_x x + W_h h + b)
        c' = i φ(W_z x + W_I I + W_h h + b) + f c,    h' = o tanh(c'),    p = softmax(W_s h')

    The state begins at zero. The paper, with a plain LSTM, found the ways of bringing in the image about equally good.

    Attributes:
        vocab_size: V.
        embed_size: E, width of a word.
        hidden_size: D, LSTM units and width of the embedded image.
        normalize_features: standardise each image's features first (not in the papers).
        dropout_rate: share of words, embedded image and outputs dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    normalize_features: bool = False
    dropout_rate: float = 0.5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def dense(size: int, use_bias: bool = False) -> nn.Dense:
            return nn.Dense(size, use_bias=use_bias, dtype=self.dtype)

        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.image_embedding = dense(self.hidden_size, use_bias=True)
        self.image_maxout = dense(2 * self.hidden_size)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        # Columns: the gates i, f, o and the two halves of the maxout.
        self.word_gates = dense(5 * self.hidden_size, use_bias=True)
        self.hidden_gates = dense(5 * self.hidden_size)
        self.logits = OutputLayer(self.hidden_size, self.vocab_size)

    def _embed_image(self, features: Features) -> Float[Array, "N D"]:
        pooled = features.pooled.astype(self.dtype)
        return nn.relu(self.image_embedding(self.feature_norm(pooled) if self.normalize_features else pooled))

    def start(self, features: Features) -> tuple[Float[Array, "N maxout"], LSTMCarry]:
        """Compute the share [N, 2 D] that pooled features [N, F] have in every step; the state is zero."""
        image = self.image_maxout(self._embed_image(features))
        return image, zero_carry(image.shape[0], self.hidden_size, self.dtype)

    def _step(
        self, carry: LSTMCarry, projected: Float[Array, "B gates"], image: Float[Array, "B maxout"]
    ) -> tuple[LSTMCarry, Float[Array, "B D"]]:
        cell, hidden = carry
        cell, hidden = maxout_cell(cell, projected + self.hidden_gates(hidden), image)
        return (cell, hidden), hidden

    def decode_step(
        self, context: Float[Array, "N maxout"], carry: LSTMCarry, tokens: Int[Array, " B"]
    ) -> tuple[LSTMCarry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        image = per_caption(context, tokens.shape[0])
        carry, hidden = self._step(carry, self.word_gates(self.embedding(tokens)), image)
        return carry, self.logits().logits(hidden)

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing over captions without their last id; `keys` make dropout act."""
        image = per_caption(self._embed_image(features), tokens.shape[0])
        image = self.image_maxout(dropout(image, self.dropout_rate, keys, site=2))
        words = self.word_gates(swap_time(dropout(self.embedding(tokens), self.dropout_rate, keys, site=0)))
        carry = zero_carry(tokens.shape[0], self.hidden_size, self.dtype)
        _, hidden = scan_words(ParInjectDecoder._step, self, carry, words, image)
        return DecoderOutput(dropout(hidden, self.dropout_rate, keys, site=1), self.logits())
