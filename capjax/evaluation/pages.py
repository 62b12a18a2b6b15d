"""The files of an evaluation that people look at: the page, the sheet, and where the model looked."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from capjax.attribution.explainer import Explainer
from capjax.attribution.looks import looks_of, shown_as
from capjax.evaluation.captioned_split import CaptionedSplit
from capjax.evaluation.rival import Rival
from capjax.metrics.coco_caption import Scores
from capjax.report import CaptionRow, evaluation_report, spread, write_explanation_sheet, write_page, write_sheet
from capjax.types import CaptionRecord

_SHEET_SIZE = 24
_NOTE = "Captions that a model wrote."
_NOTE_BESIDE_REFERENCES = "Captions that a model wrote, with what people wrote of the same images."


def rows_of(
    split: CaptionedSplit,
    scores: Scores | None,
    rival: Rival | None,
    rival_scores: Scores | None,
    picture_of: Callable[[CaptionRecord], bytes | None],
) -> list[CaptionRow]:
    """Return what there is to tell of each image.

    Args:
        split: the captions.
        scores: theirs; None of images without references.
        rival: whose captions stand beside them, if there is one.
        rival_scores: of those.
        picture_of: gives the encoded photo of a record, or None.
    """
    captioned = zip(split.seen.records, split.captions, split.verdicts, split.ailments, strict=True)
    return [
        CaptionRow(
            image_id=record.image_id,
            file_name=record.file_name,
            image=partial(picture_of, record),
            caption=caption.text,
            references=record.captions,
            log_prob=caption.log_prob,
            scores=_of_image(scores, record.image_id),
            alternatives=caption.alternatives,
            verdict=verdict,
            ailments=found,
            rival=rival and rival.captions[record.image_id],
            rival_scores=_of_image(rival_scores, record.image_id),
        )
        for record, caption, verdict, found in captioned
    ]


def _of_image(scores: Scores | None, image_id: int) -> dict[str, float]:
    by_metric = scores.per_image if scores else {}
    return {name: values[image_id] for name, values in by_metric.items() if image_id in values}


def write_pages(
    out: pathlib.Path,
    split: CaptionedSplit,
    rows: Sequence[CaptionRow],
    report: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    rival: Rival | None,
    explainer: Explainer | None,
) -> None:
    """Write report.html, sheet.png and, if there is an explainer, explained.png.

    Args:
        out: the folder.
        split: the captions.
        rows: see `rows_of`.
        report: the content of metrics.json; empty without references.
        log: of the training, for curves.
        rival: as for `rows_of`.
        explainer: of the (first) model.
    """
    seen, settings, judge, num_models = split.seen, split.settings, split.judge, len(split.seen.models)
    chosen = spread(rows, _SHEET_SIZE)
    looks = looks_of(seen, split.captions, explainer, chosen) if explainer else {}
    crop = shown_as(seen.models[0]).crop
    rows = [
        replace(row, explanation=looks[row.image_id].explanation, crop=crop) if row.image_id in looks else row
        for row in rows
    ]
    note = judge.note(seen.records) if judge else _NOTE_BESIDE_REFERENCES if report else _NOTE
    decoded, told = settings.told(), settings.to_dict()
    if num_models > 1:
        decoded, told = f"{decoded}, {num_models} models that vote", told | {"models": num_models}
        if explainer:
            note += f"\n\nWhere words are explained, it is by the first of the {num_models} models."
    page = evaluation_report(
        report,
        rows,
        title=seen.title,
        note=note,
        settings=told,
        decoded=decoded,
        log=log,
        rival=rival.name if rival else "",
    )
    write_page(out / "report.html", page)
    heading = f"{seen.title}{f' ({judge.KIND})' if judge else ''}: {len(rows):,} images, decoded with {decoded}"
    write_sheet(out / "sheet.png", chosen, heading=heading)
    if explainer:
        how = next(iter(looks.values())).explanation.method
        lit = f"; lit where the model looked ({how})" if how else ""
        lit += f"; words as the first of {num_models} models has them" if num_models > 1 else ""
        write_explanation_sheet(out / "explained.png", list(looks.values()), heading=f"{heading}{lit}")
