"""Decode a split, score it, show it: `capjax evaluate --model=DIR --split=test`.

The output folder holds metrics.json (scores, intervals, health, every setting), per_image.jsonl with every caption, its
references and scores, results.json in the COCO results layout, report.html with up to a thousand of them and their
pictures, sheet.png with two dozen from best to worst, and, if asked for, explained.png with how likely the words of
these were and where the model looked, which the page then tells as well.
"""

import argparse
import importlib
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from capjax import config as configuration
from capjax import data, split_rows
from capjax.attribution.explainer import Explainer
from capjax.attribution.looks import looks_of, shown_as
from capjax.captioning.loaded_model import LoadedModel, load_ensemble
from capjax.captioning.splits import decode_split, open_as_seen
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
    records, rows, config = open_as_seen(models, config, split, other_features=other_features)
    records = records[: max_images or None]
    explainer = Explainer(models[0], max_words=models[0].search.max_length) if explain else None
    if explainer:  # what it cannot explain is refused now rather than after an hour of decoding
        explainer(rows[0], "")
    others = read_captions(rival, records) if rival else {}
    on_first_process(partial(check_writable, out))

    captions, seconds = decode_split(models, records, rows, settings, batch_size)
    if jax.process_index() != 0:
        return {}
    write_json(out / "results.json", [{"image_id": c.image_id, "caption": c.text} for c in captions])
    for name in _BESIDE:  # of an earlier evaluation: what is here, should this one fail half-way, is of one alone
        (out / name).unlink(missing_ok=True)

    judge = _judge(config.dataset.name)
    verdicts = [judge and judge.verdict(r, c.text) for r, c in zip(records, captions, strict=True)]
    # Images without references (a test set whose captions are secret) are captioned and not scored.
    known = {record.image_id: record.captions for record in records if record.captions}
    report, per_image, rival_per_image = {}, {}, {}
    if known:
        references = References(known)
        hypotheses = {caption.image_id: caption.text for caption in captions if caption.image_id in known}
        scores = score(references, hypotheses, metrics)
        per_image = scores.per_image
        report = score_report(
            scores, references, hypotheses, bootstrap_samples=bootstrap_samples, decoder=settings.to_dict()
        )
        report["settings"] |= {"dataset": config.dataset.name, "split": split, "num_models": len(models)}
        report["models"] = [{"recipe": model.config.recipe, "scores": model.scores} for model in models]
        report["command"] = command
        report["captions_per_second"] = len(captions) / seconds
        report["exact_match"] = _share_of_exact_matches(references, hypotheses)
        if judge:
            report["right"] = verdicts.count("right") / len(verdicts)
        if rival:
            rival_scores = score(references, {i: others[i] for i in known}, metrics)
            rival_per_image = rival_scores.per_image
            report["comparison"] = _comparison(rival, rival_scores, out, scores, report["settings"])
        write_metrics(out, report)
        print(score_table(f"{config.dataset.name}, {split}", scores, report, references, settings.told()))

    picture_of = split_rows.pictures(config, split) if picture_of is None else picture_of
    ailing = ailments([caption.text for caption in captions])
    captioned = [
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
        for record, caption, verdict, found in zip(records, captions, verdicts, ailing, strict=True)
    ]
    write_per_image(out / "per_image.jsonl", captioned)
    chosen = spread(captioned, _SHEET_SIZE)
    looks = looks_of(models[0], explainer, records, rows, picture_of, chosen) if explainer else {}
    captioned = [
        replace(row, explanation=looks[row.image_id].explanation, crop=shown_as(models[0]).crop)
        if row.image_id in looks
        else row
        for row in captioned
    ]
    title = f"{config.dataset.name}, {split}"
    note = judge.note(records) if judge else "Captions that a model wrote, with what people wrote of the same images."
    log = pathlib.Path(models[0].path).parent / "metrics.jsonl"  # of the training, for curves
    log = read_log(log) if log.exists() else ()
    write_page(out / "report.html", evaluation_report(report, captioned, settings.to_dict(), title, note, log))
    heading = f"{title}{f' ({judge.KIND})' if judge else ''}: {len(captioned):,} images, decoded with {settings.told()}"
    write_sheet(out / "sheet.png", chosen, heading=heading)
    if explainer:
        how = next(iter(looks.values())).explanation.method
        lit = f"; lit where the model looked ({how})" if how else ""
        write_explanation_sheet(out / "explained.png", list(looks.values()), heading=f"{heading}{lit}")
    if ledger and known:
        append_row(ledger, _ledger_row(models, config, split, report, settings, log))
    print(f"{len(captions):,} captions, {len(captions) / seconds:,.1f} a second; wrote {out}")
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


def read_captions(folder: pathlib.Path, records: Sequence[CaptionRecord]) -> dict[int, str]:
    """Read what another evaluation wrote of some images.

    Raises:
        CapjaxError: if it is none, or not of these images.
    """
    if not (folder / "results.json").is_file():
        raise CapjaxError(
            f"expected an evaluation in {folder}, found no results.json; `capjax evaluate --out={folder}` writes one"
        )
    captions = read_results(str(folder / "results.json"))
    if lacking := [record.image_id for record in records if record.image_id not in captions]:
        raise CapjaxError(
            f"expected an evaluation of the same images in {folder}, it lacks {len(lacking)} of {len(records)}, such "
            f"as {lacking[0]}; evaluate the other model on this split first"
        )
    return captions


def _ledger_row(
    models: Sequence[LoadedModel],
    config: ConfigDict,
    split: str,
    report: Mapping[str, Any],
    settings: DecoderSettings,
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    model = models[0]
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
        "seeds": [m.config.seed for m in models],
        "encoder": sees,
        "data": {"dataset": config.dataset.name, "split": split, "num_images": report["settings"]["num_images"]},
        "search": settings.to_dict(),
        "scores": {name: report[name] for name in report["intervals"] or METRICS if name in report},
        "intervals": report["intervals"],
        "health": report["health"],
        "right": report.get("right"),
        "captions_per_second": report["captions_per_second"],
        "validation": model.scores,
        "training_seconds": sum(line.get("train/seconds", 0.0) for line in log) or None,
        "command": report["command"],
        **provenance(),
    }


def _judge(dataset: str) -> Any:
    """Return the module that tells whether a caption of a picture of this dataset is true, if there is one."""
    module = data.SOURCES[data.parse_name(dataset).source].judge
    return importlib.import_module(module) if module else None


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
