"""`capjax demo`: the whole way on rendered pictures, from an empty folder to a page of captions, without a download.

It runs the commands that a user would, and says each.
"""

import argparse
import json
import pathlib
import sys
import time

from capjax import data
from capjax.host.disk import local_path, write_atomically
from capjax.metrics.coco_caption import DEFAULT_METRICS

NUM_PICTURES = 8
METRICS = [name for name in DEFAULT_METRICS if name != "METEOR"]  # METEOR's word lists are not part of capjax


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax demo`."""
    parser.add_argument("--out", type=local_path, help="folder to write (default: demo, demo_unseen_pairs …)")
    parser.add_argument("--from_scratch", action="store_true", help="train the encoder as well, from random weights")
    parser.add_argument("--unseen_pairs", action="store_true", help="test with pairs of colour and shape never seen")


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    started = time.perf_counter()
    out = args.out or _own_folder(args)
    data_dir, model = f"--data_dir={out / 'data'}", out / "run" / "model"
    recipe = ["--config=scenes:from_scratch" if args.from_scratch else "--config=scenes"]
    dataset = "scenes_pairs" if args.unseen_pairs else "scenes"
    recipe += [f"--config.dataset.name={dataset}", f"--config.dataset.data_dir={out / 'data'}"]
    commands = [["data", "prepare", dataset, data_dir]]
    if not args.from_scratch:
        recipe.append(f"--config.features.dir={out / 'features'}")
        commands.append(["features", *recipe])
    commands.append(["train", *recipe, f"--workdir={out / 'run'}"])
    evaluation = out / "evaluation"
    evaluate = ["evaluate", f"--model={model}", f"--out={evaluation}", f"--metrics={','.join(METRICS)}", "--explain"]
    commands.append(evaluate)
    for command in commands:
        print(f"$ capjax {' '.join(command)}", file=sys.stderr)
        if status := args.main(command):
            return status

    _write_pictures(out, dataset)
    report = json.loads((evaluation / "metrics.json").read_text())
    new = "unseen pairs of colour and shape" if args.unseen_pairs else "held-out combinations of colour, shape and time"
    print(
        f"{report['settings']['num_images']} test pictures with {new}: {report['right']:.1%} of the captions are "
        f"right, {report['exact_match']:.1%} equal a reference, "
        f"BLEU-4 {100 * report['BLEU-4']:.1f}, CIDEr-D {100 * report['CIDEr-D']:.1f}"
    )
    print(f"page: {evaluation / 'report.html'}")
    print(f"sheet: {evaluation / 'sheet.png'}, where it looked: {evaluation / 'explained.png'}")
    print(f"curves: {out / 'run' / 'curves.png'}")
    print(f"the demo took {time.perf_counter() - started:.0f} s; caption pictures by yourself with")
    print(f"  capjax caption --model={model} {out / 'pictures'}")
    return 0


def _own_folder(args: argparse.Namespace) -> pathlib.Path:
    """Name a folder after what is asked for: another demo's features and checkpoints would not fit."""
    return pathlib.Path("_".join(["demo", *(name for name in ("from_scratch", "unseen_pairs") if getattr(args, name))]))


def _write_pictures(out: pathlib.Path, name: str) -> None:
    """Write some test pictures as files, for the user to caption."""
    dataset = data.load(name, out / "data")
    images = dataset.images("test")
    for i, record in enumerate(dataset.records("test")[:NUM_PICTURES]):
        write_atomically(out / "pictures" / record.file_name, images[i])
