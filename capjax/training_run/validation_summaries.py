"""What TensorBoard shows of every validation beside its scores: pictures with their captions, and histograms."""

from collections.abc import Callable, Mapping, Sequence

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from capjax import split_rows
from capjax.errors import CapjaxError
from capjax.report import CaptionRow, draw_sheet, thumbnail
from capjax.sharding import fetch_state
from capjax.training.summaries import histogram_summary, picture_summary, table_summary
from capjax.training.tensorboard import Summary
from capjax.training.train_state import TrainState
from capjax.training_run.setup import Setup
from capjax.types import CaptionRecord

_PICTURE_SIZE = 330
"""Longest side in pixels, as wide as a sheet shows them."""


class ValidationSummaries:
    """The same few pictures at every validation, and the parameters with what they changed by since the one before.

    The captions are those that the validation wrote for CIDEr-D: nothing is decoded again. Measured on two CPU cores,
    eight pictures take 0.03 seconds a validation, the first time 0.7, when what reads them is imported; histograms take
    0.05 seconds for every million of trained parameters. Of the disk, both take 0.3 MB a validation.
    """

    def __init__(self, setup: Setup, records: Sequence[CaptionRecord], state: TrainState) -> None:
        """Choose the pictures, which are first read when they are shown.

        Args:
            setup: of the run.
            records: that are validated on.
            state: that the run starts or goes on from; the first changes are counted from it.
        """
        self._setup = setup
        self._shows_histograms = setup.config.log.histograms
        self._before = self._trained(state) if self._shows_histograms else {}
        self._samples = None
        if setup.config.log.num_pictures and jax.process_index() == 0:
            self._samples = _Samples(setup.config, records)

    def __call__(self, step: int, state: TrainState, captions: Mapping[int, str]) -> list[Summary.Value]:
        """Make the summaries of a validation; to be called on all processes, of which the first has something to show.

        Args:
            step: that was validated.
            state: of it.
            captions: that it wrote, by image id.
        """
        shown = self._samples.summaries(step, captions) if self._samples else []
        if self._shows_histograms:
            before, self._before = self._before, self._trained(state)
            if jax.process_index() == 0:
                for name, values in self._before.items():
                    shown.append(histogram_summary(f"parameters/{name}", values))
                    shown.append(histogram_summary(f"changes/{name}", values - before[name]))
        return shown

    def _trained(self, state: TrainState) -> dict[str, np.ndarray]:
        """Fetch the parameters that are validated and kept, but for an encoder that stays as it is."""
        frozen = {"encoder"} if self._setup.config.encoder.learning_rate_scale == 0 else set()
        params = {part: tree for part, tree in state.eval_variables["params"].items() if part not in frozen}
        return flax.traverse_util.flatten_dict(fetch_state(params, self._setup.mesh), sep="/")


class _Samples:
    """Pictures at equal distances through the split, the first and the last among them."""

    def __init__(self, config: ConfigDict, records: Sequence[CaptionRecord]) -> None:
        captioned = [i for i, record in enumerate(records) if record.captions]
        count = min(config.log.num_pictures, len(captioned))
        places = np.linspace(0, len(captioned) - 1, count).round().astype(int)
        self._records = [records[captioned[place]] for place in places]
        self._config = config
        self._pictures: list[bytes | None] | None = None

    def summaries(self, step: int, captions: Mapping[int, str]) -> list[Summary.Value]:
        """Show the captions as a table, and on a sheet where there are pictures on this machine."""
        if self._pictures is None:
            picture_of = split_rows.pictures(self._config, self._config.dataset.val_split)
            self._pictures = [_small(picture_of, record) for record in self._records]
        rows = [
            CaptionRow(record.image_id, record.file_name, picture, captions[record.image_id], record.captions)
            for record, picture in zip(self._records, self._pictures, strict=True)
        ]
        table = [("picture", "caption of the model", "caption of a person")]
        table += [(row.file_name, row.caption, row.references[0]) for row in rows]
        shown = [table_summary("captions/text", table)]
        if any(self._pictures):
            sheet = draw_sheet(rows, heading=f"greedy decoding, step {step:,}", num_references=1)
            shown.append(picture_summary("captions/pictures", sheet))
        return shown


def _small(picture_of: Callable[[CaptionRecord], bytes | None], record: CaptionRecord) -> bytes | None:
    """Read a picture; None if there is none or it is damaged, which shall not end a run that can do without it."""
    try:
        picture = picture_of(record)
        return picture and thumbnail(picture, _PICTURE_SIZE)
    except CapjaxError:
        return None
