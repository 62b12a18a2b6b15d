"""`capjax train` against a PyTorch script that does the same, from start-up to the last validation, in turn.

    python experiments/benchmarks/training.py --data=flickr8k
    python experiments/benchmarks/training.py --generate=82783 --steps=600 --validate_every=300

DATA holds captions_train.json and captions_dev.json in COCO's layout and squeezenet_features.npz; `--generate` makes as
many images of 2,048 random features with captions of random words of the length and number of COCO's instead. Both
programs run as processes of their own and are timed from outside. The first run of capjax has an empty cache of
compiled programs, as on a new machine; it counts apart.

They are not alike in all: capjax prepares the captions and copies the features before (not counted), where PyTorch
reads the .npz and the JSON every time; capjax writes checkpoints, the best model, curves and TensorBoard's files, and
PyTorch nothing; capjax sets how memory is handed out (`capjax.host.memory`), as it does for every user.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile

import jax
import numpy as np
import torch  # which is then read from disk before the peer's first run
from timing import run, told, versus

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "training.md"
HEAD = f"""# Training from start-up to the last validation, against PyTorch

`python experiments/benchmarks/training.py`, which says what is compared.

jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} CPU cores, Python {platform.python_version()};
seconds as median [min–max], × is the time of PyTorch over that of the row, round by round.

| work | program | seconds | × |
| --- | --- | --- | --- |
"""
NUM_WORDS = 8_765  # with the four special ids, the vocabulary of COCO at five occurrences


def generate(folder: pathlib.Path, num_images: int) -> None:
    """Write features and captions that look like those of COCO to a program."""
    rng = np.random.default_rng(0)
    names = [f"{i:06d}.jpg" for i in range(num_images + 1000)]
    pooled = rng.random((len(names), 2048), np.float32)
    np.savez(folder / "features.npz", file_name=np.array(names), pooled=pooled)
    frequencies = 1 / np.arange(10, NUM_WORDS + 10)
    for split, images in (("train", range(num_images)), ("dev", range(num_images, len(names)))):
        lengths = np.clip(rng.normal(10.5, 2.4, 5 * len(images)).round(), 6, 18).astype(int)
        words = rng.choice(NUM_WORDS, lengths.sum(), p=frequencies / frequencies.sum())
        captions = np.split(words, np.cumsum(lengths)[:-1])
        content = {
            "images": [{"id": i, "file_name": names[i]} for i in images],
            "annotations": [
                {"id": n, "image_id": images[n // 5], "caption": " ".join(f"w{word}" for word in caption)}
                for n, caption in enumerate(captions)
            ],
        }
        (folder / f"captions_{split}.json").write_text(json.dumps(content))


def link(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Lay out real data as the two programs want it."""
    for name in ("captions_train.json", "captions_dev.json"):
        (folder / name).symlink_to(source.resolve() / name)
    (folder / "features.npz").symlink_to(source.resolve() / "squeezenet_features.npz")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=pathlib.Path)
    source.add_argument("--generate", type=int, metavar="IMAGES")
    parser.add_argument("--steps", type=int, default=934)
    parser.add_argument("--validate_every", type=int, default=467)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="a file, to which a table is appended")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "data").mkdir()
        if args.data:
            link(args.data, folder / "data")
        else:
            generate(folder / "data", args.generate)
        environment = {
            "TFDS_DATA_DIR": str(folder / "tfds"),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        }
        capjax = [sys.executable, "-m", "capjax"]
        config = [
            "--config=flickr8k:imported",
            f"--config.features.dir={folder / 'features'}",
            f"--config.train.num_steps={args.steps}",
            f"--config.eval.every={args.validate_every}",
            f"--config.train.checkpoint_every={args.validate_every}",
        ]
        run([*capjax, "data", "prepare", "flickr8k", f"--source={folder / 'data'}", "--captions_only"], **environment)
        run([*capjax, "features", *config, f"--import={folder / 'data' / 'features.npz'}"], **environment)
        peer = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "torch_training.py"), str(folder / "data")]
        peer += [f"--steps={args.steps}", f"--validate_every={args.validate_every}"]

        first, _ = run([*capjax, "train", *config, f"--workdir={folder / 'first'}"], **environment)
        times: dict[str, list[float]] = {"PyTorch, packed": [], "capjax": []}
        for i in range(args.rounds):
            seconds, said_by_them = run(peer)
            times["PyTorch, packed"].append(seconds)
            seconds, said = run([*capjax, "train", *config, f"--workdir={folder / str(i)}"], **environment)
            times["capjax"].append(seconds)
    print(said_by_them, said, sep="\n", file=sys.stderr)
    theirs, ours = times["PyTorch, packed"], times["capjax"]
    what = f"Flickr8k, {args.steps} steps" if args.data else f"{args.generate:,} generated images, {args.steps} steps"
    lines = [
        f"| {what} | PyTorch, packed | {told(theirs, 0)} | 1.00 |",
        f"| {what} | capjax | {told(ours, 0)} | {versus(theirs, ours)} |",
        f"| {what} | capjax, nothing compiled yet | {first:.0f} | {np.median(theirs) / first:.2f} |",
    ]
    with args.out.open("a") as file:
        if not file.tell():
            file.write(HEAD)
        file.write("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
