"""`capjax caption` against a PyTorch script that does the same, from start-up to the last sentence, in turn.

    python experiments/benchmarks/captioning.py

Both load Inception V3 and the reference decoder (vocabulary 8,769) from a file of their own, with random weights, and
caption the same photos greedily; both run as processes of their own and are timed from outside. The first run of capjax
has an empty cache of compiled programs, as on a new machine; it counts apart. capjax also checks what it loads: the
file's SHA-256 and the shape of every weight.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from timing import run, told, versus
from torch_captioning import TorchCaptioner

from capjax.config import default_config
from capjax.model_directory import ModelDirectory, save_model
from capjax.models import Captioner, InitInjectDecoder
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.pretrained.random_encoder import random_encoder, random_images
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.types import Features

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = [*SPECIAL_WORDS, *(f"w{i}" for i in range(8_765))]


def prepare(folder: pathlib.Path, num_photos: int) -> list[str]:
    """Write a model for each program, and photos, whose names are returned."""
    encoder = EncoderConfig(source="random")
    decoder = Captioner(InitInjectDecoder(len(WORDS)))
    features, word = Features(jnp.zeros((1, 2048))), jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(0), features, word)["params"]
    of_encoder = random_encoder(encoder, seed=0)
    variables = {
        "params": {"encoder": of_encoder["params"], "decoder": jax.tree.map(np.asarray, params["decoder"])},
        "batch_stats": {"encoder": of_encoder["batch_stats"]},
    }
    config = default_config()
    config.encoder.weights = "random"
    vocabulary = Vocabulary(WORDS, "words")
    save_model(
        folder / "model", ModelDirectory(config.to_dict(), dataclasses.asdict(encoder), vocabulary, variables, {})
    )
    torch.save({"words": WORDS, "weights": TorchCaptioner(len(WORDS)).state_dict()}, folder / "model.pt")
    photos = [folder / f"{i}.jpg" for i in range(num_photos)]
    for photo, pixels in zip(photos, random_images(num_photos, 500, seed=0), strict=True):
        Image.fromarray(pixels).save(photo)
    return [str(photo) for photo in photos]


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/captioning.md"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--num_photos", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    args = parser.parse_args()
    lines = [
        "# Captioning from start-up to the last sentence, against PyTorch",
        "",
        "`python experiments/benchmarks/captioning.py`, which says what is compared.",
        "",
        f"jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} CPU cores, Python "
        f"{platform.python_version()}; {args.rounds} rounds in turn. Seconds as median [min–max], × is the time of "
        f"PyTorch over that of the row, round by round. {args.note}".rstrip(),
        "",
        "| photos | program | seconds | × |",
        "| --- | --- | --- | --- |",
    ]
    theirs = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "torch_captioning.py")]
    ours = [sys.executable, "-m", "capjax", "caption"]
    for number in args.num_photos:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            photos = prepare(folder, number)
            cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
            ours_here = [*ours, f"--model={folder / 'model'}", *photos]
            theirs_here = [*theirs, str(folder / "model.pt"), *photos]
            first, _ = run(ours_here, **cache)
            run(theirs_here)
            times = np.array([(run(theirs_here)[0], run(ours_here, **cache)[0]) for _ in range(args.rounds)])
        by_them, by_us = times.T
        lines += [
            f"| {number} | PyTorch | {told(by_them, 2)} | 1.00 |",
            f"| {number} | capjax | {told(by_us, 2)} | {versus(by_them, by_us)} |",
            f"| {number} | capjax, nothing compiled yet | {first:.1f} | {np.median(by_them) / first:.2f} |",
        ]
        print(*lines[-3:], sep="\n", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
