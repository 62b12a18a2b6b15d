"""Show, Attend and Tell with soft attention (Xu et al. 2015, https://arxiv.org/abs/1502.03044)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.attention import AdditiveAttention, Memory, grid_of
from capjax.models.decoder import DecoderOutput, OutputLayer, per_caption
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTM, LSTMCarry, scan_words, swap_time
from capjax.types import SPECIAL_IDS, Features, RowKeys


class _Seen(NamedTuple):
    """What one step looked at: the gated context ẑ, and the attention α."""

    gated: Float[Array, "B F"]
    attention: Float[Array, "B P"]


class SoftAttentionDecoder(nn.Module):
    """Predicts a caption word by word from an LSTM that looks at the grid anew for every word.

    With a_i the grid and E y the last word (the paper's numbers):

        c0, h0 = tanh(W_c ā), tanh(W_h ā),  ā the mean of the a_i        (section 3.1.2)
        α = softmax_i f_att(a_i, h),  ẑ = β Σ α_i a_i,  β = σ(f_β(h))    (equations 4 to 6, 13; gate of section 4.2.1)
        c, h = LSTM([E y, ẑ], c, h)                                       (equations 1 to 3)
        p ∝ exp(L_o tanh(E y + L_h h + L_z ẑ))                            (equation 7, tanh as in the authors' program)
        loss += λ Σ_i (1 - Σ_t α_ti)²                                     (equation 14, doubly stochastic attention)

    Published with VGG-19 at full aspect, beam search: Flickr8k BLEU-4 19.5, COCO BLEU-4 24.3.

    Attributes:
        vocab_size: V.
        embed_size: E = M, width of a word and of the deep output.
        hidden_size: D, LSTM units.
        attention_size: A, units of f_att.
        doubly_stochastic_weight: λ.
        normalize_features: standardise the features at each position first (not in the paper).
        dropout_rate: share of word embeddings and of the deep output dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    attention_size: int = 512
    doubly_stochastic_weight: float = 1.0
    normalize_features: bool = False
    dropout_rate: float = 0.5
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def dense(size: int, use_bias: bool = True) -> nn.Dense:
            return nn.Dense(size, use_bias=use_bias, dtype=self.dtype)

        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.initial_cell, self.initial_hidden = dense(self.hidden_size), dense(self.hidden_size)
        self.attention = AdditiveAttention(self.attention_size, dtype=self.dtype)
        self.gate = dense(1)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        # The LSTM's kernel on ẑ stands apart from that on the word.
        self.lstm = LSTM(self.embed_size, self.hidden_size, dtype=self.dtype)
        self.context_gates = dense(4 * self.hidden_size, use_bias=False)
        self.output_hidden, self.output_context = dense(self.embed_size), dense(self.embed_size, use_bias=False)
        self.logits = OutputLayer(self.embed_size, self.vocab_size)

    def start(self, features: Features) -> tuple[Memory, LSTMCarry]:
        """Prepare the grids [N, P, F] for attention; the state comes from their means."""
        grid = grid_of(features, self.dtype)
        grid = self.feature_norm(grid) if self.normalize_features else grid
        mean = jnp.mean(grid, axis=1)
        return self.attention.memory(grid), (jnp.tanh(self.initial_cell(mean)), jnp.tanh(self.initial_hidden(mean)))

    def _step(
        self, carry: LSTMCarry, word: Float[Array, "B E"], memory: Memory
    ) -> tuple[LSTMCarry, tuple[Float[Array, "B D"], _Seen]]:
        """Look, then take in the word."""
        _, hidden = carry
        mixed, attention = self.attention(memory, hidden)
        gated = nn.sigmoid(self.gate(hidden)) * mixed
        carry, hidden = self.lstm.step(carry, word, self.context_gates(gated))
        return carry, (hidden, _Seen(gated, attention))

    def _deep_output(
        self, words: Float[Array, "... E"], hidden: Float[Array, "... D"], gated: Float[Array, "... F"]
    ) -> Float[Array, "... E"]:
        return jnp.tanh(words + self.output_hidden(hidden) + self.output_context(gated))

    def decode_step(
        self, context: Memory, carry: LSTMCarry, tokens: Int[Array, " B"]
    ) -> tuple[LSTMCarry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        words = self.embedding(tokens)
        carry, (hidden, seen) = self._step(carry, words, context)
        return carry, self.logits().logits(self._deep_output(words, hidden, seen.gated))

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; extras: `attention` [B, L, P]; penalties: `doubly_stochastic`."""
        context, carry = self.start(features)
        words = dropout(self.embedding(tokens), self.dropout_rate, keys, site=0)
        carry = per_caption(carry, tokens.shape[0])
        _, (hidden, seen) = scan_words(SoftAttentionDecoder._step, self, carry, swap_time(words), context)
        hidden = dropout(self._deep_output(words, hidden, seen.gated), self.dropout_rate, keys, site=1)
        predicts = (tokens != SPECIAL_IDS.pad) & (tokens != SPECIAL_IDS.end)
        looked = jnp.sum(seen.attention * predicts[:, :, None], axis=1)
        penalty = self.doubly_stochastic_weight * jnp.sum((1.0 - looked) ** 2, axis=-1)
        return DecoderOutput(hidden, self.logits(), {"attention": seen.attention}, {"doubly_stochastic": penalty})
