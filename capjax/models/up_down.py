"""Top-down attention with two LSTMs (Anderson et al. 2018, https://arxiv.org/abs/1707.07998), here on the grid."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.attention import AdditiveAttention, Memory, drop_grid, grid_of
from capjax.models.decoder import DecoderOutput, OutputLayer, per_caption
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTM, LSTMCarry, scan_words, swap_time, zero_carry
from capjax.types import Features, RowKeys

Carry = tuple[LSTMCarry, LSTMCarry]
"""The states of the attention LSTM and of the language LSTM."""


class UpDownDecoder(nn.Module):
    """Predicts a caption word by word: one LSTM chooses where to look, another what to say.

    Section 3.2 of the paper, with v_i the embedded grid and v̄ its mean:

        h¹ = LSTM¹([h², v̄, W_e Π])                                   (equation 2)
        v̂ = Σ α_i v_i,  α = softmax_i wᵀ tanh(W_va v_i + W_ha h¹)      (equations 3 to 5)
        h² = LSTM²([v̂, h¹]),    p = softmax(W_p h² + b_p)              (equations 6 and 7)

    The authors look at 36 regions of a detector and have 1,000 units, 1,000-wide words and 512 for attention; here the
    grid of the encoder takes the regions' place. Published on COCO (Karpathy's test split, ResNet grid, beam 5):
    CIDEr 105.4 by cross-entropy, 111.1 after self-critical training (113.5 and 120.1 with regions).

    Attributes:
        vocab_size: V.
        embed_size: E, width of a word.
        hidden_size: D = M, units of both LSTMs and width of the embedded grid.
        attention_size: A, units of the comparison.
        normalize_features: standardise the features at each position first (not in the paper).
        dropout_rate: share of words, embedded grid and outputs dropped in training (as in the program of Luo 2020).
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 1000
    hidden_size: int = 1000
    attention_size: int = 512
    normalize_features: bool = False
    dropout_rate: float = 0.5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def gates() -> nn.Dense:
            return nn.Dense(4 * self.hidden_size, use_bias=False, dtype=self.dtype)

        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.grid_embedding = nn.Dense(self.hidden_size, dtype=self.dtype)
        self.attention = AdditiveAttention(self.attention_size, dtype=self.dtype)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        # Each LSTM's kernel is cut where its input is joined from parts, so that every part is multiplied when known.
        self.attention_lstm = LSTM(self.embed_size, self.hidden_size, dtype=self.dtype)
        self.mean_gates, self.language_gates = gates(), gates()
        self.language_lstm = LSTM(self.hidden_size, self.hidden_size, dtype=self.dtype)
        self.attended_gates = gates()
        self.logits = OutputLayer(self.hidden_size, self.vocab_size)

    def _embed_grid(self, features: Features) -> Float[Array, "N P D"]:
        grid = grid_of(features, self.dtype)
        return nn.relu(self.grid_embedding(self.feature_norm(grid) if self.normalize_features else grid))

    def _context(self, grid: Float[Array, "N P D"]) -> tuple[Memory, Float[Array, "N gates"]]:
        return self.attention.memory(grid), self.mean_gates(jnp.mean(grid, axis=1))

    def _zeros(self, num_captions: int) -> Carry:
        zeros = zero_carry(num_captions, self.hidden_size, self.dtype)
        return zeros, zeros

    def start(self, features: Features) -> tuple[tuple[Memory, Float[Array, "N gates"]], Carry]:
        """Embed the grids [N, P, F], prepare them for attention, and what their means add to LSTM¹; states are zero."""
        grid = self._embed_grid(features)
        return self._context(grid), self._zeros(grid.shape[0])

    def _step(
        self, carry: Carry, word: Float[Array, "B E"], context: tuple[Memory, Float[Array, "N gates"]]
    ) -> tuple[Carry, tuple[Float[Array, "B D"], Float[Array, "B P"]]]:
        memory, of_mean = context
        looking, speaking = carry
        of_mean = per_caption(of_mean, word.shape[0])
        looking, where = self.attention_lstm.step(looking, word, of_mean + self.language_gates(speaking[1]))
        mixed, attention = self.attention(memory, where)
        speaking, hidden = self.language_lstm.step(speaking, where, self.attended_gates(mixed))
        return (looking, speaking), (hidden, attention)

    def decode_step(
        self, context: tuple[Memory, Float[Array, "N gates"]], carry: Carry, tokens: Int[Array, " B"]
    ) -> tuple[Carry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        carry, (hidden, _) = self._step(carry, self.embedding(tokens), context)
        return carry, self.logits().logits(hidden)

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; extras: `attention` [B, L, P]."""
        grid = drop_grid(self._embed_grid(features), self.dropout_rate, keys, tokens.shape[0])
        words = dropout(self.embedding(tokens), self.dropout_rate, keys, site=0)
        carry = self._zeros(tokens.shape[0])
        _, (hidden, attention) = scan_words(UpDownDecoder._step, self, carry, swap_time(words), self._context(grid))
        return DecoderOutput(dropout(hidden, self.dropout_rate, keys, site=1), self.logits(), {"attention": attention})
