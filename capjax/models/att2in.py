"""Att2in, the attention model of self-critical sequence training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.attention import AdditiveAttention, Memory, drop_grid, grid_of
from capjax.models.decoder import DecoderOutput, OutputLayer
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTMCarry, maxout_cell, scan_words, swap_time, zero_carry
from capjax.types import Features, RowKeys


class Att2inDecoder(nn.Module):
    """Predicts a caption word by word from an LSTM into whose cell alone the attended image goes.

    Section 2.2 of the paper, with I_i the embedded grid, x the last word and φ a maxout of two:

        I = Σ α_i I_i,  α = softmax_i wᵀ tanh(W_a I_i + W_h h)
        i, f, o = σ(W_x x + W_h h + b)
        c' = i φ(W_z x + W_I I + W_h h + b) + f c,    h' = o tanh(c'),    p = softmax(W_s h')

    The state begins at zero. Dropout of 0.5 on words, the embedded grid and the output is that of the authors' later
    program. Published on COCO (Karpathy's test split, ResNet-101, beam search): CIDEr 101.3 by cross-entropy, 111.4
    after self-critical training.

    Attributes:
        vocab_size: V.
        embed_size: E, width of a word.
        hidden_size: D = M, LSTM units and width of the embedded grid.
        attention_size: A, units of the comparison.
        normalize_features: standardise the features at each position first (not in the paper).
        dropout_rate: share of words, embedded grid and outputs dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    attention_size: int = 512
    normalize_features: bool = False
    dropout_rate: float = 0.5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def dense(size: int, use_bias: bool = False) -> nn.Dense:
            return nn.Dense(size, use_bias=use_bias, dtype=self.dtype)

        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.grid_embedding = dense(self.hidden_size, use_bias=True)
        self.attention = AdditiveAttention(self.attention_size, dtype=self.dtype)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        # Columns: the gates i, f, o and the two halves of the maxout.
        self.word_gates = dense(5 * self.hidden_size, use_bias=True)
        self.hidden_gates = dense(5 * self.hidden_size)
        self.image_maxout = dense(2 * self.hidden_size)
        self.logits = OutputLayer(self.hidden_size, self.vocab_size)

    def _embed_grid(self, features: Features) -> Float[Array, "N P D"]:
        grid = grid_of(features, self.dtype)
        return nn.relu(self.grid_embedding(self.feature_norm(grid) if self.normalize_features else grid))

    def start(self, features: Features) -> tuple[Memory, LSTMCarry]:
        """Embed the grids [N, P, F] and prepare them for attention; the state is zero."""
        grid = self._embed_grid(features)
        return self.attention.memory(grid), zero_carry(grid.shape[0], self.hidden_size, self.dtype)

    def _step(
        self, carry: LSTMCarry, projected: Float[Array, "B gates"], memory: Memory
    ) -> tuple[LSTMCarry, tuple[Float[Array, "B D"], Float[Array, "B P"]]]:
        cell, hidden = carry
        mixed, attention = self.attention(memory, hidden)
        cell, hidden = maxout_cell(cell, projected + self.hidden_gates(hidden), self.image_maxout(mixed))
        return (cell, hidden), (hidden, attention)

    def decode_step(
        self, context: Memory, carry: LSTMCarry, tokens: Int[Array, " B"]
    ) -> tuple[LSTMCarry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        carry, (hidden, _) = self._step(carry, self.word_gates(self.embedding(tokens)), context)
        return carry, self.logits().logits(hidden)

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; extras: `attention` [B, L, P]."""
        grid = drop_grid(self._embed_grid(features), self.dropout_rate, keys, tokens.shape[0])
        carry = zero_carry(tokens.shape[0], self.hidden_size, self.dtype)
        words = self.word_gates(swap_time(dropout(self.embedding(tokens), self.dropout_rate, keys, site=0)))
        _, (hidden, attention) = scan_words(Att2inDecoder._step, self, carry, words, self.attention.memory(grid))
        hidden = dropout(hidden, self.dropout_rate, keys, site=1)
        return DecoderOutput(hidden, self.logits(), {"attention": attention})
