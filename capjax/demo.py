"""`capjax demo`: the whole way on rendered pictures, from an empty folder to a page of captions, without a download."""

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence
from types import ModuleType

from capjax import config as configuration
from capjax import evaluate, extract_features, prepare_data, train
from capjax.data.scenes.builder import scene_of
from capjax.data.scenes.claims import caption_is_true
from capjax.decoding.settings import DecoderSettings
from capjax.metrics.coco_caption import DEFAULT_METRICS
from capjax.predict import load_model
from capjax.report import read_log, spread, write_sheet
from capjax.types import CaptionRecord

NOTE = """This page is about scenes, a data set that capjax renders itself: coloured shapes, not photographs. It shows
that the whole way works, from pictures to sentences; its scores say nothing about photographs.

Every picture below holds a combination of colour, shape and time of day that no training picture has, neither of the
captioner nor of its encoder: red stars by day, say, after red stars at night and red hearts by day. A caption is marked
right if all that it says is true of the picture, as a program that knows how the picture was made can tell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax demo`."""
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("demo"), help="folder to write (default: demo)"
    )
    parser.add_argument("--from_scratch", action="store_true", help="train the encoder as well, from random weights")


def run(args: argparse.Namespace) -> int:
    """Run the demo, saying each command that does the same."""
    started = time.perf_counter()
    out, recipe = args.out, "scenes:from_scratch" if args.from_scratch else "scenes"
    overrides = [f"dataset.data_dir={out / 'data'}"]
    if not args.from_scratch:
        overrides.append(f"features.dir={out / 'features'}")
    config_arguments = [f"--config={recipe}"]

    _job("data", prepare_data, ["prepare", "scenes", f"--data_dir={out / 'data'}"])
    if not args.from_scratch:
        _job("features", extract_features, config_arguments, overrides)
    _job("train", train, [*config_arguments, f"--workdir={out / 'run'}"], overrides)

    _say("evaluate", [f"--model={out / 'run' / 'model'}", "--split=test", f"--out={out / 'evaluation'}"])
    evaluation = evaluate.evaluate(
        [load_model(str(out / "run" / "model"))],
        configuration.load_config(recipe, overrides),
        "test",
        DecoderSettings(max_length=configuration.load_config(recipe).search.max_length),
        out / "evaluation",
        metrics=[name for name in DEFAULT_METRICS if name != "METEOR"],
        title="capjax demo: captions of unseen scenes",
        note=NOTE,
        log=read_log(out / "run" / "metrics.jsonl"),
        verdict_of=_verdict,
    )
    rows = evaluation.rows
    num_right = sum(row.verdict == "right" for row in rows)
    num_exact = sum(row.caption in row.references for row in rows)
    summary = (
        f"{len(rows)} test pictures with held-out combinations of colour, shape and time of day: "
        f"{num_right / len(rows):.1%} of the captions are right, {num_exact / len(rows):.1%} equal a reference, "
        f"BLEU-4 {100 * evaluation.report['BLEU-4']:.1f}, CIDEr-D {100 * evaluation.report['CIDEr-D']:.1f}"
    )
    configuration.write_json(
        out / "evaluation" / "summary.json",
        {"pictures": len(rows), "right": num_right / len(rows), "exact_match": num_exact / len(rows)},
    )
    write_sheet(out / "sheet.png", spread(rows, 24), heading="scenes (rendered, not photographs): " + summary)
    print(summary)
    print(f"page: {out / 'evaluation' / 'report.html'}")
    print(f"sheet: {out / 'sheet.png'}, curves: {out / 'run' / 'curves.png'}")
    print(f"the demo took {time.perf_counter() - started:.0f} s; caption more pictures with")
    print(f"  capjax caption --model={out / 'run' / 'model'} PICTURE…")
    return 0


def _verdict(record: CaptionRecord, caption: str) -> str:
    return "right" if caption_is_true(caption, scene_of(record.image_id)) else "wrong"


def _job(command: str, module: ModuleType, arguments: Sequence[str], overrides: Sequence[str] = ()) -> None:
    _say(command, [*arguments, *(f"--config.{override}" for override in overrides)])
    parser = argparse.ArgumentParser(prog=f"capjax {command}")
    module.add_arguments(parser)
    module.run(parser.parse_args(list(arguments), argparse.Namespace(overrides=list(overrides))))


def _say(command: str, arguments: Sequence[str]) -> None:
    print(f"$ capjax {command} {' '.join(arguments)}", file=sys.stderr)
