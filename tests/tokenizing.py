"""Captions of the tests as the files that training maps."""

from collections.abc import Sequence

from capjax.data.tokenized_captions import TokenizedCaptions, tokenized_for_this_process
from capjax.types import CaptionRecord


def tokenized(captions: Sequence[Sequence[str]], tokenizer: str = "words") -> TokenizedCaptions:
    """Tokenise the captions of images."""
    records = [CaptionRecord(i, f"{i}.png", tuple(of_image)) for i, of_image in enumerate(captions)]
    return tokenized_for_this_process(records, tokenizer)
