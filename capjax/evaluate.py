"""Decode a split, score it, show it: `capjax evaluate --model=DIR --split=test`.

The output folder holds metrics.json (scores, intervals, health, every setting), per_image.jsonl with every caption, its
references and scores, results.json in the COCO results layout, report.html with up to a thousand of them and their
pictures, sheet.png with two dozen from best to worst, and, if asked for, explained.png with how likely the words of
these were and where the model looked, which the page then tells as well.
"""

import argparse
import pathlib
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from capjax import split_rows
from capjax.attribution.explainer import Explainer
from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel, load_ensemble
from capjax.captioning.splits import decode_split, open_as_seen
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.decoding.settings import DecoderSettings
from capjax.distributed import add_process_arguments, check_same, join_processes, on_first_process
from capjax.errors import CapjaxError
from capjax.evaluation.captioned_split import CaptionedSplit, report_of
from capjax.evaluation.ledger_row import ledger_row
from capjax.evaluation.pages import rows_of, write_pages
from capjax.evaluation.rival import comparison_of, read_rival
from capjax.host.disk import check_writable, inside, local_path, write_json
from capjax.images import ImageError, read_image_file
from capjax.metrics.coco_caption import DEFAULT_METRICS, METRICS, References, score
from capjax.metrics.score_report import metric_names, score_table, write_metrics
from capjax.report import read_log, write_per_image
from capjax.report.ledger import append_row, check_ledger
from capjax.types import CaptionRecord

_BESIDE = ("metrics.json", "per_image.jsonl", "report.html", "sheet.png", "explained.png")
"""What an evaluation writes beside results.json, or may."""


def evaluate(
    models: Sequence[LoadedModel],
    config: ConfigDict,
    split: str,
    settings: DecoderSettings,
    out: pathlib.Path,
    *,
    other_features: bool = False,
    batch_size: int = 64,
    max_images: int = 0,
    metrics: Sequence[str] = DEFAULT_METRICS,
    bootstrap_samples: int = 1000,
    picture_of: Callable[[CaptionRecord], bytes | None] | None = None,
    explain: bool = False,
    ledger: pathlib.Path | None = None,
    rival: pathlib.Path | None = None,
    command: str,
) -> dict[str, Any]:
    """Decode and score a split, and write everything to a folder.

    Args:
        models: one, or an ensemble.
        config: says where the split's images or features are.
        split: name of the split.
        settings: of the search.
        out: the folder.
        other_features: see `open_as_seen`.
        batch_size: images decoded at once on each device.
        max_images: the first so many, 0 for all.
        metrics: names of metrics.
        bootstrap_samples: draws for the intervals, 0 for none.
        picture_of: encoded photo of a record, for the page; by default that of the dataset if it has any.
        explain: tell of two dozen pictures how likely each word was and where the (first) model looked.
        ledger: file to append a row to that tells what was measured.
        rival: folder of another evaluation of the same images, whose captions stand beside these and are compared.
        command: that this is, as anybody could give it again.

    Returns:
        The content of metrics.json; empty without references, and on all processes but the first.

    Raises:
        CapjaxError: if the split, its images or its features are not there, a number makes no sense, or the folder
            cannot be written.
    """
    _check(batch_size, max_images, bootstrap_samples)
    if rival and rival.resolve() == out.resolve():
        raise CapjaxError(f"expected another folder to write than {rival}, which it is compared with; set --out")
    seen = open_as_seen(models, config, split, other_features=other_features, max_images=max_images)
    options = {"split": split, "max_images": max_images, "batch_size": batch_size, "search": settings.to_dict()}
    check_same(options | {"number of images": len(seen.records)}, "options")
    explainer = Explainer(models[0], max_words=settings.max_length) if explain else None
    if explainer:  # what it cannot explain is refused now rather than after an hour of decoding
        explainer(seen.rows[0], "")
    other = read_rival(rival, seen) if rival else None
    on_first_process(partial(check_writable, out))
    if ledger:
        on_first_process(partial(check_ledger, ledger))

    captioned = CaptionedSplit(seen, settings, *decode_split(seen, settings, batch_size))
    if jax.process_index() != 0:
        return {}
    _write_results(out, captioned.captions)

    report, scores, other_scores = {}, None, None
    # Images without references (a test set whose captions are secret) are captioned and not scored.
    if known := {record.image_id: record.captions for record in seen.records if record.captions}:
        references = References(known)
        scores = score(references, captioned.hypotheses(known), metrics)
        if not scores.corpus:
            raise CapjaxError(
                f"none of what was asked for can be computed: {'; '.join(scores.skipped.values())}; "
                f"the captions are in {out / 'results.json'}"
            )
        report = report_of(captioned, scores, references, bootstrap_samples=bootstrap_samples, command=command)
        if other:
            other_scores = score(references, {i: other.captions[i] for i in known}, metrics)
            report["comparison"] = comparison_of(other, other_scores, out, scores, report["settings"])
        write_metrics(out, report)
        print(score_table(seen.title, scores, report, references, settings.told()))

    picture_of = picture_of or split_rows.pictures(seen.config, split)
    rows = rows_of(captioned, scores, other, other_scores, picture_of)
    write_per_image(out / "per_image.jsonl", rows)
    log = read_log(models[0].training_log) if models[0].training_log.exists() else ()
    write_pages(out, captioned, rows, report, log, other, explainer)
    if ledger and report:
        append_row(ledger, ledger_row(captioned, report, log))
    print(f"{len(captioned.captions):,} captions, {captioned.per_second:,.1f} a second; wrote {out}")
    return report


def _check(batch_size: int, max_images: int, bootstrap_samples: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        CapjaxError: naming the number.
    """
    for name, (value, least) in {"batch_size": (batch_size, 1), "max_images": (max_images, 0)}.items():
        if value < least:
            raise CapjaxError(f"expected {name} of at least {least}, got {value}")
    if bootstrap_samples < 0 or bootstrap_samples == 1:
        raise CapjaxError(f"expected bootstrap_samples of 0 (none) or at least 2, got {bootstrap_samples}")


def _write_results(out: pathlib.Path, captions: Sequence[Caption]) -> None:
    """Write results.json, and remove what an earlier evaluation wrote beside its own.

    Should this one fail half-way, what is in the folder is of one evaluation all the same.
    """
    write_json(out / "results.json", [{"image_id": c.image_id, "caption": c.text} for c in captions])
    for name in _BESIDE:
        (out / name).unlink(missing_ok=True)


def _read(folder: pathlib.Path, file_name: str) -> bytes | None:
    """Read a photo by the name that a dataset gives it, which must not lead out of the folder; None if that fails."""
    path = inside(folder, file_name)
    try:
        return path and read_image_file(path)
    except ImageError:
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax evaluate`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory; several, with commas, vote")
    parser.add_argument("--split", default="test", help="split of the dataset (default: test)")
    parser.add_argument("--out", type=local_path, help="folder to write (default: DIR/../evaluation-SPLIT)")
    parser.add_argument("--dataset", help="another dataset than the model was trained on")
    parser.add_argument("--data_dir", help="folder of prepared datasets")
    parser.add_argument("--features_dir", help="feature store to read; '' reads images")
    parser.add_argument("--images", type=local_path, help="folder with the photos, by file name, to show on the page")
    parser.add_argument("--batch_size", type=int, default=64, help="images decoded at once on a device (default: 64)")
    parser.add_argument("--max_images", type=int, default=0, help="the first so many images; 0: all (default)")
    parser.add_argument(
        "--metrics", default=",".join(DEFAULT_METRICS), help=f"comma-separated, of {', '.join(METRICS)}"
    )
    parser.add_argument(
        "--bootstrap_samples", type=int, default=1000, help="draws for the intervals (default: 1000); 0: none"
    )
    parser.add_argument(
        "--explain", action="store_true", help="tell of two dozen captions how likely each word was and where it looked"
    )
    parser.add_argument("--ledger", type=local_path, metavar="FILE", help="append a row of what was measured (JSONL)")
    parser.add_argument(
        "--compare",
        type=local_path,
        metavar="FOLDER",
        help="that `capjax evaluate` of another model wrote: both stand side by side, and are tested",
    )
    add_decoder_flags(parser)
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate a model directory."""
    metrics = metric_names(args.metrics)
    for name in ("data_dir", "features_dir"):
        if getattr(args, name):
            setattr(args, name, str(local_path(getattr(args, name))))
    if args.images and not args.images.is_dir():
        raise CapjaxError(f"expected the photos in a folder, there is none at --images={args.images}")
    join_processes(args)
    models = load_ensemble(args.model)
    config = models[0].config.copy_and_resolve_references()
    with config.unlocked():
        config.dataset.name = args.dataset or config.dataset.name
        config.dataset.data_dir = args.data_dir or config.dataset.data_dir
        if args.features_dir is not None:
            config.features.dir = args.features_dir
        elif args.dataset and config.features.dir:
            raise CapjaxError(
                f"the model's features in {config.features.dir} are of another dataset; name those of {args.dataset} "
                "with --features_dir=DIR, or look at its images with --features_dir="
            )
    evaluate(
        models,
        config,
        args.split,
        settings_from_flags(args, models[0].search),
        args.out or models[0].workdir / f"evaluation-{args.split}",
        other_features=args.features_dir is not None,
        batch_size=args.batch_size,
        max_images=args.max_images,
        metrics=metrics,
        bootstrap_samples=args.bootstrap_samples,
        picture_of=args.images and (lambda record: _read(args.images, record.file_name)),
        explain=args.explain,
        ledger=args.ledger,
        rival=args.compare,
        command=shlex.join(["capjax", *args.argv]),
    )
    return 0
