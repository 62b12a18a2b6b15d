"""The reference decoder: the image sets the LSTM's initial state ("init-inject", Tanti et al. 2018)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.decoder import DecoderOutput, OutputLayer, per_caption
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTM, LSTMCarry
from capjax.types import Features, RowKeys


class InitInjectDecoder(nn.Module):
    """Predicts a caption word by word from an LSTM that starts as an image.

    Pooled features pass a bottleneck and become c0 = h0; every LSTM output passes a bottleneck to the logits. The
    defaults are the reference system's.

    Attributes:
        vocab_size: V.
        embed_size: E, width of a word.
        hidden_size: D, LSTM units.
        image_bottleneck_size: units between the features and the state.
        logit_bottleneck_size: M, units between the state and the logits.
        normalize_features: standardise each image's features (layer normalisation) before they enter, for encoders
            whose features have no common scale.
        dropout_rate: share of word embeddings' and LSTM outputs' units dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 100
    hidden_size: int = 300
    image_bottleneck_size: int = 120
    logit_bottleneck_size: int = 120
    normalize_features: bool = False
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def dense(size: int) -> nn.Dense:
            return nn.Dense(size, kernel_init=nn.initializers.glorot_uniform(), dtype=self.dtype)

        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.image_bottleneck = dense(self.image_bottleneck_size)
        self.initial_state = dense(self.hidden_size)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        self.lstm = LSTM(self.embed_size, self.hidden_size, dtype=self.dtype)
        self.logit_bottleneck = dense(self.logit_bottleneck_size)
        self.logits = OutputLayer(self.logit_bottleneck_size, self.vocab_size)

    def start(self, features: Features) -> tuple[tuple[()], LSTMCarry]:
        """Turn pooled features [N, F] into the LSTM's initial (c, h), both the same vector [N, D]; no context."""
        pooled = features.pooled.astype(self.dtype)
        if self.normalize_features:
            pooled = self.feature_norm(pooled)
        state = nn.elu(self.initial_state(nn.elu(self.image_bottleneck(pooled))))
        return (), (state, state)

    def decode_step(
        self, context: tuple[()], carry: LSTMCarry, tokens: Int[Array, " B"]
    ) -> tuple[LSTMCarry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        carry, hidden = self.lstm.step(carry, self.embedding(tokens))
        return carry, self.logits().logits(nn.elu(self.logit_bottleneck(hidden)))

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; `tokens` are the captions without their last id, `keys` make dropout act."""
        _, carry = self.start(features)
        words = dropout(self.embedding(tokens), self.dropout_rate, keys, site=0)
        _, hidden = self.lstm(per_caption(carry, tokens.shape[0]), words)
        hidden = self.logit_bottleneck(dropout(hidden, self.dropout_rate, keys, site=1))
        return DecoderOutput(nn.elu(hidden), self.logits())
