"""A small Transformer decoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) that attends to the grid."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from capjax.errors import CapjaxError
from capjax.models.attention import grid_of
from capjax.models.decoder import DecoderOutput, OutputLayer, OutputProjection
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.types import Features, RowKeys

KeysAndValues = tuple[Float[Array, "_ _ H K"], Float[Array, "_ _ H K"]]
"""Of some positions of captions or of images."""


class Cache(NamedTuple):
    """The state between two words: keys and values of the words so far by layer, and how many there are."""

    layers: tuple[KeysAndValues, ...]
    num_words: Int[Array, " B"]


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (section 3.2 of the paper).

    Attributes:
        num_heads: H.
        size: D, over all heads.
        dtype: of the computation; the softmax runs in float32.
    """

    num_heads: int
    size: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def heads() -> nn.DenseGeneral:
            return nn.DenseGeneral((self.num_heads, self.size // self.num_heads), dtype=self.dtype)

        self.query, self.key, self.value = heads(), heads(), heads()
        self.out = nn.DenseGeneral(self.size, axis=(-2, -1), dtype=self.dtype)

    def remember(self, x: Float[Array, "... D"]) -> tuple[Float[Array, "... H K"], Float[Array, "... H K"]]:
        """Compute keys and values."""
        return self.key(x), self.value(x)

    def __call__(
        self, x: Float[Array, "B L D"], remembered: KeysAndValues, mask: Bool[Array, "#B #L T"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L T"]]:
        """Attend from B captions to the memory of B captions or of N images, N a divisor of B; return weights too."""
        keys, values = remembered
        query = self.query(x) / jnp.sqrt(self.size / self.num_heads).astype(self.dtype)
        query = query.reshape(keys.shape[0], -1, *query.shape[1:])  # [N, k, L, H, K]
        scores = jnp.einsum("nklhc,nthc->nkhlt", query, keys).astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1)
        mixed = jnp.einsum("nkhlt,nthc->nklhc", weights.astype(self.dtype), values)
        return self.out(mixed.reshape(x.shape[0], *mixed.shape[2:])), weights.reshape(x.shape[0], *weights.shape[2:])


class Block(nn.Module):
    """Self-attention, attention to the grid, feed-forward layer: each behind a layer norm, beside a skip (pre-norm)."""

    num_heads: int
    size: int
    dropout_rate: float
    site: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.norms = [nn.LayerNorm(dtype=self.dtype) for _ in range(3)]
        self.self_attention = MultiHeadAttention(self.num_heads, self.size, self.dtype)
        self.cross_attention = MultiHeadAttention(self.num_heads, self.size, self.dtype)
        self.widen, self.narrow = nn.Dense(4 * self.size, dtype=self.dtype), nn.Dense(self.size, dtype=self.dtype)

    def remember(self, x: Float[Array, "B L D"]) -> KeysAndValues:
        """Compute what later words will attend to."""
        return self.self_attention.remember(self.norms[0](x))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        words: KeysAndValues,
        image: KeysAndValues,
        mask: Bool[Array, "#B #L T"],
        keys: RowKeys | None,
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L P"]]:
        """Transform words given the memory of words and of images; return the attention to the grid as well."""
        attended, _ = self.self_attention(self.norms[0](x), words, mask)
        x += dropout(attended, self.dropout_rate, keys, self.site)
        attended, looked = self.cross_attention(self.norms[1](x), image)
        x += dropout(attended, self.dropout_rate, keys, self.site + 1)
        widened = nn.relu(self.widen(self.norms[2](x)))
        return x + dropout(self.narrow(widened), self.dropout_rate, keys, self.site + 2), looked


class TransformerDecoder(nn.Module):
    """Predicts a caption word by word by attending to the words so far and to the grid.

    The decoder half of the paper's figure 1, with layer normalisation in front of each part instead of behind it (Xiong
    et al. 2020, https://arxiv.org/abs/2002.04745), learnt positions and, if wanted, the embedding as the last layer
    (Press and Wolf 2017). No figure of this very model was published.

    Attributes:
        vocab_size: V.
        hidden_size: D = M, width.
        num_layers: blocks.
        num_heads: H, which divides D.
        max_length: words that a caption may have, START included.
        cache_length: words that `start` makes room for, `max_length` by default; each step goes over all of it.
        tie_embeddings: let the embedding be the last layer's kernel as well.
        normalize_features: standardise the features at each position first.
        dropout_rate: share of embeddings and of every part's outputs dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    hidden_size: int = 512
    num_layers: int = 3
    num_heads: int = 8
    max_length: int = 64
    cache_length: int | None = None
    tie_embeddings: bool = True
    normalize_features: bool = False
    dropout_rate: float = 0.1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.hidden_size % self.num_heads:
            raise CapjaxError(
                f"expected decoder.num_heads that divides hidden_size ({self.hidden_size}), got {self.num_heads}"
            )
        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        scale = nn.initializers.normal(self.hidden_size**-0.5)
        self.grid_embedding = nn.Dense(self.hidden_size, dtype=self.dtype)
        self.embedding = Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, embedding_init=scale)
        self.positions = self.param("positions", scale, (self.max_length, self.hidden_size))
        self.blocks = [
            Block(self.num_heads, self.hidden_size, self.dropout_rate, site=3 * i + 1, dtype=self.dtype)
            for i in range(self.num_layers)
        ]
        self.last_norm = nn.LayerNorm(dtype=self.dtype)
        if self.tie_embeddings:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (self.vocab_size,))
        else:
            self.logits = OutputLayer(self.hidden_size, self.vocab_size)

    def _projection(self) -> OutputProjection:
        return OutputProjection(self.embedding.embedding.T, self.logit_bias) if self.tie_embeddings else self.logits()

    def _remember_grid(self, features: Features) -> tuple[KeysAndValues, ...]:
        grid = grid_of(features, self.dtype)
        grid = self.grid_embedding(self.feature_norm(grid) if self.normalize_features else grid)
        return tuple(block.cross_attention.remember(grid) for block in self.blocks)

    def start(self, features: Features) -> tuple[tuple[KeysAndValues, ...], Cache]:
        """Compute keys and values of the grids [N, P, F] for every layer; no word is remembered yet."""
        images = self._remember_grid(features)
        num_images = images[0][0].shape[0]
        length = self.cache_length or self.max_length
        empty = jnp.zeros((num_images, length, self.num_heads, self.hidden_size // self.num_heads), self.dtype)
        return images, Cache(tuple((empty, empty) for _ in self.blocks), jnp.zeros(num_images, jnp.int32))

    def decode_step(
        self, context: tuple[KeysAndValues, ...], carry: Cache, tokens: Int[Array, " B"]
    ) -> tuple[Cache, Float[Array, "B V"]]:
        """Feed one word per caption; return the words remembered and the logits of the next."""
        x = (self.embedding(tokens) + self.positions[carry.num_words].astype(self.dtype))[:, None]
        positions = jnp.arange(carry.layers[0][0].shape[1])[None]
        at = positions == carry.num_words[:, None]
        mask = (positions <= carry.num_words[:, None])[:, None]
        layers = []
        for block, remembered, image in zip(self.blocks, carry.layers, context, strict=True):
            words = tuple(
                jnp.where(at[:, :, None, None], new, old)
                for new, old in zip(block.remember(x), remembered, strict=True)
            )
            layers.append(words)
            x, _ = block(x, words, image, mask, None)
        return Cache(tuple(layers), carry.num_words + 1), self._projection().logits(self.last_norm(x[:, 0]))

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; extras: `attention` [B, L, P], the mean over layers and heads.

        Raises:
            CapjaxError: if the captions are longer than `max_length`.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise CapjaxError(
                f"expected captions of at most {self.max_length} words (decoder.max_length), got {length}"
            )
        x = self.embedding(tokens) + self.positions[None, :length].astype(self.dtype)
        x = dropout(x, self.dropout_rate, keys, site=0)
        causal = jnp.tril(jnp.ones((1, length, length), bool))
        looks = []
        for block, image in zip(self.blocks, self._remember_grid(features), strict=True):
            x, looked = block(x, block.remember(x), image, causal, keys)
            looks.append(jnp.mean(looked, axis=1))
        extras = {"attention": sum(looks) / len(looks)}
        return DecoderOutput(self.last_norm(x), self._projection(), extras)
