"""Inception V3 at 299 px against PyTorch and Keras (on PyTorch): images/s, interleaved in one run.

    python experiments/benchmarks/encoder.py --out=experiments/results/encoder.md
    python experiments/benchmarks/encoder.py --one_core
    python experiments/benchmarks/encoder.py --dtype=bfloat16 --batch_sizes 256 512 --profile

All networks compute the same, weights random, BatchNorm with stored statistics. PyTorch runs eagerly in inference mode,
in its usual memory layout and in channels-last, the one it recommends for convolutions; on a GPU also compiled
(`torch.compile`), and Keras is left out. Ours receives uint8 pixels and scales them; the others receive them scaled
already, on the device. On a CPU memory is handed out as `capjax` sets it (`capjax.host.memory`), for all.

The share of the limit is what the arithmetic of the network (as PyTorch counts it) would take at the rate of a product
of large square matrices, over the time of the row.

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

from capjax.host.memory import keep_freed_memory

keep_freed_memory()  # before there are threads

os.environ["KERAS_BACKEND"] = "torch"
import jax
import numpy as np
import torch
from device import DEVICE, ON_CPU, busiest, description, finish
from limits import Product, seconds_of
from timing import command_line, interleave, versus
from torch.utils.flop_counter import FlopCounterMode

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


def programs(batch_size: int, dtype: str) -> tuple[dict[str, Callable[[], object]], float]:
    """Return what is timed, each call encoding one batch completely, and the floating-point operations of a call."""
    pixels = random_images(batch_size, 299, seed=0)
    config = EncoderConfig()
    variables = jax.device_put(random_encoder(config, seed=0))
    on_device = jax.device_put(pixels)
    encode = jax.jit(config.build(jax.numpy.dtype(dtype)).apply).lower(variables, on_device).compile()

    scaled = torch.from_numpy(np.array(scale_images(jax.numpy.asarray(pixels))))
    kind = {"device": DEVICE, "dtype": getattr(torch, dtype)}
    images = scaled.permute(0, 3, 1, 2).contiguous().to(**kind)
    images_last = images.contiguous(memory_format=torch.channels_last)
    plain = torch_network().to(**kind)
    last = torch_network().to(memory_format=torch.channels_last, **kind)

    @torch.inference_mode()
    def run(network: Callable, batch: torch.Tensor) -> None:
        network(batch)
        finish()

    timed = {BASELINE: lambda: run(plain.grid, images), "PyTorch, channels-last": lambda: run(last.grid, images_last)}
    if ON_CPU:
        import keras  # which a machine with an accelerator need not have

        network = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(299, 299, 3))
        timed["Keras"] = lambda: run(network, scaled)
    else:
        compiled = torch.compile(last.grid)
        timed["PyTorch, channels-last, compiled"] = lambda: run(compiled, images_last)
    timed["capjax"] = lambda: jax.block_until_ready(encode(variables, on_device))
    with FlopCounterMode(display=False) as counter:
        run(plain.grid, images)
    return timed, counter.get_total_flops()


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/encoder.md"))
    parser.add_argument("--rounds", type=int, default=12, help="0 compiles everything and times nothing")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--profile", action="store_true", help="list what our network spends its time on")
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
        f"`{command_line()}`",
        "",
        f"Inception V3 at 299 px, {args.dtype}. {os.cpu_count()} CPU cores ({platform.machine()}); {description()}, "
        f"Python {platform.python_version()}; {kind}; {args.rounds} interleaved rounds. × is the time of plain PyTorch "
        "over that of the row, round by round: median [min–max]; above 1 is faster than PyTorch. Share of the limit is "
        f"explained in the script. {args.note}".rstrip(),
        "",
        "| batch | program | images/s | × PyTorch | share of the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    side = 4096 if ON_CPU else 8192
    rate = 2 * side**3 / seconds_of([Product(side, side, side)], args.dtype) if args.rounds else 1.0
    profiles = []
    for batch_size in args.batch_sizes:
        timed, operations = programs(batch_size, args.dtype)
        times = interleave(timed, args.rounds, clock)
        if not args.rounds:
            continue
        for name, seconds in times.items():
            images = batch_size / np.median(seconds)
            share = operations / rate / np.median(seconds)
            cells = [str(batch_size), name, f"{images:.1f}", versus(times[BASELINE], seconds), f"{share:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        if args.profile:
            profiles += ["", f"Batch {batch_size}:", "", "| operation | ms | share |", "| --- | --- | --- |"]
            profiles += [f"| {name} | {spent:.2f} | {share:.0%} |" for name, spent, share in busiest(timed["capjax"])]
    if profiles:
        lines += ["", "## What capjax spends its time on", *profiles]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
