"""Inception V3 at 299 px against PyTorch and Keras (on PyTorch): images/s, interleaved in one run.

    python experiments/benchmarks/encoder.py --out=experiments/results/encoder.md
    python experiments/benchmarks/encoder.py --one_core

All networks compute the same in float32 with all cores, weights random, BatchNorm with stored statistics. PyTorch runs
eagerly in inference mode, in its usual memory layout and in channels-last, the one it recommends for convolutions. Ours
receives uint8 pixels and scales them; the others receive them scaled already. Memory is handed out as `capjax` sets it
(`capjax.host_memory`), for all.

On a machine that does other work too, wall-clock times of several threads measure how they wait for each other. There,
`--one_core` binds the process to one core and counts its CPU seconds.
"""

import argparse
import importlib.util
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

from capjax.host_memory import keep_freed_memory

keep_freed_memory()  # before there are threads

os.environ["KERAS_BACKEND"] = "torch"
import jax
import keras
import numpy as np
import torch
from timing import interleave, versus

from capjax.models.inception_v3 import scale_images
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.pretrained.random_encoder import random_encoder, random_images

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASELINE = "PyTorch"


def torch_network() -> torch.nn.Module:
    """Build the plain PyTorch network that the tests use as a judge."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tests" / "models" / "torchvision_inception.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module.inception_v3(aux_logits=False).eval()


def programs(batch_size: int) -> dict[str, Callable[[], object]]:
    """Return what is timed: each call encodes one batch completely."""
    pixels = random_images(batch_size, 299, seed=0)
    config = EncoderConfig()
    variables = jax.device_put(random_encoder(config, seed=0))
    encode = jax.jit(config.build().apply)

    scaled = torch.from_numpy(np.array(scale_images(jax.numpy.asarray(pixels))))
    images = scaled.permute(0, 3, 1, 2).contiguous()
    plain, last = torch_network(), torch_network().to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)
    keras_network = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(299, 299, 3))

    @torch.inference_mode()
    def run(network: Callable, batch: torch.Tensor) -> object:
        return network(batch)

    return {
        BASELINE: lambda: run(plain.grid, images),
        "PyTorch, channels-last": lambda: run(last.grid, images_last),
        "Keras": lambda: run(keras_network, scaled),
        "capjax": lambda: jax.block_until_ready(encode(variables, pixels)),
    }


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/encoder.md"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    parser.add_argument("--one_core", action="store_true", help="count CPU seconds on one core")
    args = parser.parse_args()
    clock, kind = time.perf_counter, "wall-clock time, all cores"
    if args.one_core:
        clock, kind = time.process_time, "CPU time, one core"
        torch.set_num_threads(1)
        for thread in os.listdir("/proc/self/task"):  # a process of several threads is bound thread by thread
            os.sched_setaffinity(int(thread), {0})
    lines = [
        "# Encoder against PyTorch and Keras",
        "",
        f"`python experiments/benchmarks/encoder.py{' --one_core' if args.one_core else ''}`",
        "",
        f"Inception V3 at 299 px, float32. {os.cpu_count()} CPU cores ({platform.machine()}); "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, Keras {keras.__version__} on torch, Python {platform.python_version()}; "
        f"{kind}; {args.rounds} interleaved rounds. × is the time of plain PyTorch over that of the row, round by "
        f"round: median [min–max]; above 1 is faster than PyTorch. {args.note}".rstrip(),
        "",
        "| batch | program | images/s | × PyTorch |",
        "| --- | --- | --- | --- |",
    ]
    for batch_size in args.batch_sizes:
        times = interleave(programs(batch_size), args.rounds, clock)
        for name, seconds in times.items():
            rate = batch_size / np.median(seconds)
            lines.append(f"| {batch_size} | {name} | {rate:.1f} | {versus(times[BASELINE], seconds)} |")
            print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
