"""Captions of a split explained, each on the picture that the model saw."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from capjax.attribution.explainer import Explainer
from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel
from capjax.captioning.splits import SeenSplit
from capjax.errors import CapjaxError
from capjax.images import Preprocessing, decode_image, preprocess
from capjax.report import CaptionRow, Look
from capjax.types import Features

_PICTURE = Preprocessing(image_size=224, crop="none")
"""How pictures are shown whose features were made elsewhere."""


def shown_as(model: LoadedModel) -> Preprocessing:
    """Return how the pictures of a model are shown: as it sees them, if that is known."""
    return model.preprocessing or _PICTURE


def looks_of(
    split: SeenSplit, captions: Sequence[Caption], explain: Explainer, chosen: Sequence[CaptionRow]
) -> dict[int, Look]:
    """Explain captions of a split.

    Args:
        split: the split, and the models that captioned it.
        captions: in the order of its records.
        explain: explainer of the first model.
        chosen: those that are explained, as the page shows them.

    Returns:
        By image, what to show of its caption.
    """
    model = split.models[0]
    at = {record.image_id: i for i, record in enumerate(split.records)}
    looks = {}
    for row in tqdm(chosen, "explaining", unit="picture", disable=None):
        place = at[row.image_id]
        visual = split.rows[place]
        if isinstance(visual, Features):
            pixels = _pixels(row, shown_as(model))
            # Features tell all that attention needs; only for the other methods has the model to look again.
            if pixels is not None and model.encoder and not explain.attends(visual):
                visual = pixels
        else:
            pixels = visual
        shown = np.full((224, 224, 3), 128, np.uint8) if pixels is None else pixels
        explanation = explain(visual, captions[place])
        looks[row.image_id] = Look(shown, explanation, name=row.file_name, references=row.references)
    return looks


def _pixels(row: CaptionRow, preprocessing: Preprocessing) -> UInt8[np.ndarray, "S S 3"] | None:
    """Decode the picture of a row; None if there is none or it is damaged."""
    try:
        encoded = row.picture()
        return preprocess(decode_image(encoded), preprocessing) if encoded else None
    except CapjaxError:
        return None
