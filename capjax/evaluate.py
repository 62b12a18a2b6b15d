"""Decode a split, score it, show it: `capjax evaluate --model=DIR --split=test`.

The output folder holds metrics.json (scores, intervals, health, every setting), per_image.jsonl with every caption, its
references and scores, results.json in the COCO results layout, report.html with up to a thousand of them and their
pictures, sheet.png with two dozen from best to worst, and, if asked for, explained.png with how likely the words of
these were and where the model looked, which the page then tells as well.
"""

import argparse
import importlib
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
from ml_collections import ConfigDict

from capjax import config as configuration
from capjax import data, split_rows
from capjax.attribution.explainer import Explainer
from capjax.attribution.looks import looks_of, shown_as
from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel, load_ensemble
from capjax.captioning.splits import SeenSplit, decode_split, open_as_seen
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.decoding.settings import DecoderSettings
from capjax.distributed import add_process_arguments, join_processes, on_first_process
from capjax.errors import CapjaxError
from capjax.host.disk import check_writable, inside, local_path, write_json
from capjax.images import ImageError, read_image_file
from capjax.metrics.bootstrap import compare
from capjax.metrics.caption_health import ailments
from capjax.metrics.coco_caption import DEFAULT_METRICS, METRICS, References, Scores, score
from capjax.metrics.coco_files import read_results
from capjax.metrics.score_report import (
    comparison_dict,
    comparison_table,
    metric_names,
    score_report,
    score_table,
    write_metrics,
)
from capjax.report import (
    CaptionRow,
    evaluation_report,
    read_log,
    spread,
    write_explanation_sheet,
    write_page,
    write_per_image,
    write_sheet,
)
from capjax.report.ledger import append_row, asked_of, config_sha256, provenance
from capjax.text.ptb_tokenizer import tokenize
from capjax.types import CaptionRecord

_BESIDE = ("metrics.json", "per_image.jsonl", "report.html", "sheet.png", "explained.png")
"""What an evaluation writes beside results.json, or may."""
_SHEET_SIZE = 24
_NOTE = "Captions that a model wrote, with what people wrote of the same images."


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
    explainer = Explainer(models[0], max_words=settings.max_length) if explain else None
    if explainer:  # what it cannot explain is refused now rather than after an hour of decoding
        explainer(seen.rows[0], "")
    others = read_captions(rival, seen) if rival else {}
    on_first_process(partial(check_writable, out))
    if ledger:
        on_first_process(partial(append_row, ledger, None))

    done = _Captioned(seen, settings, *decode_split(seen, settings, batch_size))
    if jax.process_index() != 0:
        return {}
    _write_results(out, done.captions)

    report, per_image, rival_per_image = {}, {}, {}
    # Images without references (a test set whose captions are secret) are captioned and not scored.
    if known := {record.image_id: record.captions for record in seen.records if record.captions}:
        references = References(known)
        scores = score(references, done.hypotheses(known), metrics)
        if not scores.corpus:
            raise CapjaxError(
                f"none of what was asked for can be computed: {'; '.join(scores.skipped.values())}; "
                f"the captions are in {out / 'results.json'}"
            )
        report, per_image = _report(done, scores, references, bootstrap_samples, command), scores.per_image
        if rival:
            rival_scores = score(references, {i: others[i] for i in known}, metrics)
            rival_per_image = rival_scores.per_image
            report["comparison"] = _comparison(rival, rival_scores, out, scores, report["settings"])
        write_metrics(out, report)
        print(score_table(seen.title, scores, report, references, settings.told()))

    picture_of = picture_of or split_rows.pictures(seen.config, split)
    rows = _rows(done, picture_of, per_image, others, rival_per_image)
    write_per_image(out / "per_image.jsonl", rows)
    log = read_log(models[0].training_log) if models[0].training_log.exists() else ()  # for curves
    _write_pictures(out, done, rows, report, log, explainer)
    if ledger and report:
        append_row(ledger, _ledger_row(seen, report, settings, log))
    print(f"{len(done.captions):,} captions, {done.per_second:,.1f} a second; wrote {out}")
    return report


@dataclass(frozen=True)
class _Captioned:
    """A split that was captioned.

    Attributes:
        seen: the split, and the models.
        settings: of the search.
        captions: in the order of its records.
        seconds: that they took.
    """

    seen: SeenSplit
    settings: DecoderSettings
    captions: Sequence[Caption]
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.captions) / self.seconds

    def hypotheses(self, known: Container[int]) -> dict[int, str]:
        """Return what was said of these images."""
        return {caption.image_id: caption.text for caption in self.captions if caption.image_id in known}

    @cached_property
    def judge(self) -> Any:
        """The module that tells whether a caption of such a picture is true, if there is one."""
        module = data.SOURCES[data.parse_name(self.seen.config.dataset.name).source].judge
        return importlib.import_module(module) if module else None

    @cached_property
    def verdicts(self) -> list[str | None]:
        """What the judge says of each caption."""
        pairs = zip(self.seen.records, self.captions, strict=True)
        return [self.judge and self.judge.verdict(record, caption.text) for record, caption in pairs]


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


def _report(
    done: _Captioned, scores: Scores, references: References, bootstrap_samples: int, command: str
) -> dict[str, Any]:
    """Return the content of metrics.json, but for a comparison."""
    seen, hypotheses = done.seen, done.hypotheses(references.raw)
    report = score_report(
        scores, references, hypotheses, bootstrap_samples=bootstrap_samples, decoder=done.settings.to_dict()
    )
    report["settings"] |= {
        "dataset": seen.config.dataset.name,
        "split": seen.name,
        "num_models": len(seen.models),
    }
    report |= {
        "models": [model.card for model in seen.models],
        "command": command,
        "captions_per_second": done.per_second,
        "exact_match": _share_of_exact_matches(references, hypotheses),
    }
    if done.judge:
        report["right"] = done.verdicts.count("right") / len(done.verdicts)
    return report


def _share_of_exact_matches(references: References, hypotheses: Mapping[int, str]) -> float:
    """Return how many of the captions, as they are scored, are one of their references."""
    pairs = zip(references.image_ids, references.tokens, strict=True)
    return sum(tokenize(hypotheses[image_id]) in said for image_id, said in pairs) / len(hypotheses)


def _comparison(
    rival: pathlib.Path, rival_scores: Scores, out: pathlib.Path, scores: Scores, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what metrics.json tells of another evaluation beside this one, and print how they differ."""
    comparison = {"with": "/".join(rival.resolve().parts[-2:]), "metrics": {}}
    if num_samples := settings["bootstrap_samples"]:
        level = settings["confidence"]
        found = compare(rival_scores.results, scores.results, num_samples, level)
        print(comparison_table(str(rival), str(out), found, num_samples, level))
        comparison["metrics"] = comparison_dict(found)
    return comparison


def _of_image(per_image: Mapping[str, Mapping[int, float]], image_id: int) -> dict[str, float]:
    return {name: values[image_id] for name, values in per_image.items() if image_id in values}


def _rows(
    done: _Captioned,
    picture_of: Callable[[CaptionRecord], bytes | None],
    per_image: Mapping[str, Mapping[int, float]],
    others: Mapping[int, str],
    rival_per_image: Mapping[str, Mapping[int, float]],
) -> list[CaptionRow]:
    """Return what the page tells of each image; `others` are the captions of a rival, if there is one."""
    ailing = ailments([caption.text for caption in done.captions])
    return [
        CaptionRow(
            image_id=record.image_id,
            file_name=record.file_name,
            image=partial(picture_of, record),
            caption=caption.text,
            references=record.captions,
            log_prob=caption.log_prob,
            scores=_of_image(per_image, record.image_id),
            alternatives=caption.alternatives,
            verdict=verdict,
            ailments=found,
            rival=others.get(record.image_id),
            rival_scores=_of_image(rival_per_image, record.image_id),
        )
        for record, caption, verdict, found in zip(done.seen.records, done.captions, done.verdicts, ailing, strict=True)
    ]


def _write_pictures(
    out: pathlib.Path,
    done: _Captioned,
    rows: Sequence[CaptionRow],
    report: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    explainer: Explainer | None,
) -> None:
    """Write what people look at: the page, the sheet and, if there is an explainer, where the (first) model looked."""
    seen, settings, judge = done.seen, done.settings, done.judge
    chosen = spread(rows, _SHEET_SIZE)
    looks = looks_of(seen, done.captions, explainer, chosen) if explainer else {}
    crop = shown_as(seen.models[0]).crop
    rows = [
        replace(row, explanation=looks[row.image_id].explanation, crop=crop) if row.image_id in looks else row
        for row in rows
    ]
    note = judge.note(seen.records) if judge else _NOTE
    write_page(out / "report.html", evaluation_report(report, rows, settings.to_dict(), seen.title, note, log))
    heading = f"{seen.title}{f' ({judge.KIND})' if judge else ''}: {len(rows):,} images, decoded with {settings.told()}"
    write_sheet(out / "sheet.png", chosen, heading=heading)
    if explainer:
        how = next(iter(looks.values())).explanation.method
        lit = f"; lit where the model looked ({how})" if how else ""
        write_explanation_sheet(out / "explained.png", list(looks.values()), heading=f"{heading}{lit}")


def read_captions(folder: pathlib.Path, seen: SeenSplit) -> dict[int, str]:
    """Read what another evaluation wrote of the images of a split.

    Raises:
        CapjaxError: if it is none, or not of these images.
    """
    if not (folder / "results.json").is_file():
        raise CapjaxError(
            f"expected an evaluation in {folder}, found no results.json; `capjax evaluate --out={folder}` writes one"
        )
    captions = read_results(str(folder / "results.json"))
    if lacking := [record.image_id for record in seen.records if record.image_id not in captions]:
        raise CapjaxError(
            f"expected an evaluation of the same images in {folder}, it lacks {len(lacking)} of {len(seen.records)}, "
            f"such as {lacking[0]}; evaluate the other model on this split first"
        )
    dataset = _dataset_of_evaluation(folder)
    if dataset and _numbering(dataset) != _numbering(seen.config.dataset.name):
        print(
            f"warning: {folder} is an evaluation of {dataset}, this one of {seen.config.dataset.name}; images of one "
            "id are taken for one, as they are where both hold the same photos under the same names",
            file=sys.stderr,
        )
    return captions


def _dataset_of_evaluation(folder: pathlib.Path) -> str:
    """Return the name of the dataset of another evaluation; "" where it does not say, as without references."""
    try:
        return str(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["settings"]["dataset"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _numbering(dataset: str) -> tuple[str, str | None]:
    """Return what two datasets have in common whose images of one id are one: the source, and a name by the user."""
    try:
        name = data.parse_name(dataset)
    except CapjaxError:  # of another version
        return dataset, None
    return name.source, name.variant if data.SOURCES[name.source].named_by_user else None


def _ledger_row(
    seen: SeenSplit, report: Mapping[str, Any], settings: DecoderSettings, log: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    model = seen.models[0]
    sees = model.encoder.config.source if model.encoder else (model.features or {}).get("imported", "imported features")
    if model.encoder and model.config.encoder.endpoint:
        sees += f" to {model.config.encoder.endpoint}"
    changes = configuration.changes(model.config)
    return {
        "recipe": model.config.recipe,
        "config": asked_of(changes),
        "config_sha256": config_sha256(changes),
        "init_from": model.config.train.init_from,
        "decoder": model.config.decoder.to_dict(),
        "seeds": [m.config.seed for m in seen.models],
        "encoder": sees,
        "data": {name: report["settings"][name] for name in ("dataset", "split", "num_images")},
        "search": settings.to_dict(),
        "scores": {name: report[name] for name in report["intervals"] or METRICS if name in report},
        "intervals": report["intervals"],
        "health": report["health"],
        "right": report.get("right"),
        "captions_per_second": report["captions_per_second"],
        "validation": model.card["scores"],
        "training_seconds": sum(line.get("train/seconds", 0.0) for line in log) or None,
        "command": report["command"],
        **provenance(),
    }


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
        "--compare", type=local_path, metavar="FOLDER", help="that another model's evaluation wrote: side by side"
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
