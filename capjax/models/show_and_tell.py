"""Show and Tell (Vinyals et al. 2015, https://arxiv.org/abs/1411.4555): the image is the first word."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from capjax.models.decoder import DecoderOutput, OutputLayer, per_caption
from capjax.models.dropout import dropout
from capjax.models.embedding import Embed
from capjax.models.recurrence import LSTM, LSTMCarry, zero_carry
from capjax.types import Features, RowKeys


class ShowAndTellDecoder(nn.Module):
    """Predicts a caption word by word from an LSTM that was shown the image once, before START.

    Section 3.1 of the paper, equations 10 to 12: x₋₁ = CNN(I), x_t = W_e S_t, p_{t+1} = softmax(LSTM(x_t)); the image
    is not fed again. Sizes and dropout are those that the authors published with im2txt: 512 units, both inputs and
    outputs of the LSTM dropped at 0.3.

    Published with beam search: Flickr8k BLEU-4 19.8 to 20.9 and CIDEr 48 to 50 in others' comparisons, COCO BLEU-4 27.7
    and CIDEr 85.5.

    Attributes:
        vocab_size: V.
        embed_size: E, width of a word and of the image among them.
        hidden_size: D = M, LSTM units.
        normalize_features: standardise each image's features first (not in the paper), for encoders whose features have
            no common scale.
        dropout_rate: share of the LSTM's inputs and outputs dropped in training.
        dtype: of the computation; parameters and logits are float32.
    """

    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    normalize_features: bool = False
    dropout_rate: float = 0.3
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        if self.normalize_features:
            self.feature_norm = nn.LayerNorm(dtype=self.dtype)
        self.image_embedding = nn.Dense(self.embed_size, dtype=self.dtype)
        self.embedding = Embed(self.vocab_size, self.embed_size, dtype=self.dtype)
        self.lstm = LSTM(self.embed_size, self.hidden_size, dtype=self.dtype)
        self.logits = OutputLayer(self.hidden_size, self.vocab_size)

    def _embed_image(self, features: Features) -> Float[Array, "N E"]:
        pooled = features.pooled.astype(self.dtype)
        return self.image_embedding(self.feature_norm(pooled) if self.normalize_features else pooled)

    def start(self, features: Features) -> tuple[tuple[()], LSTMCarry]:
        """Show the images to the LSTM; no context."""
        image = self._embed_image(features)
        carry, _ = self.lstm.step(zero_carry(image.shape[0], self.hidden_size, self.dtype), image)
        return (), carry

    def decode_step(
        self, context: tuple[()], carry: LSTMCarry, tokens: Int[Array, " B"]
    ) -> tuple[LSTMCarry, Float[Array, "B V"]]:
        """Feed one word per caption; return the new state and the logits of the next word."""
        carry, hidden = self.lstm.step(carry, self.embedding(tokens))
        return carry, self.logits().logits(hidden)

    def __call__(self, features: Features, tokens: Int[Array, "B L"], keys: RowKeys | None = None) -> DecoderOutput:
        """Run under teacher forcing; `tokens` are the captions without their last id, `keys` make dropout act."""
        image = per_caption(self._embed_image(features), tokens.shape[0])
        inputs = jnp.concatenate([image[:, None], self.embedding(tokens)], axis=1)
        inputs = dropout(inputs, self.dropout_rate, keys, site=0)
        _, hidden = self.lstm(zero_carry(tokens.shape[0], self.hidden_size, self.dtype), inputs)
        return DecoderOutput(dropout(hidden[:, 1:], self.dropout_rate, keys, site=1), self.logits())
