"""One run on other layouts of processes and devices, and moved from one to another half-way: is it the same run?

    python experiments/layouts.py --config=flickr8k:imported --data_dir=DATA --features_dir=FEATURES
    python experiments/layouts.py --features --config=flickr8k --data_dir=DATA --set --config.encoder.weights=FILE

The first form trains a recipe from features on each layout and compares it with one process of one device: the largest
difference of the losses of training and validation, relative, over all log lines, and of a parameter at the end,
relative to the largest of its array. The second extracts features: by one process, and by two of which one is killed
with SIGKILL half-way, and started again; the stores must be equal byte for byte.
"""

import argparse
import filecmp
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import psutil

from capjax.checkpoint import quiet_orbax, read_newest

LAUNCHER = pathlib.Path(__file__).parent / "launch" / "local.py"
LAYOUTS = {"1 × 1": [(1, 1)], "1 × 8": [(1, 8)], "2 × 2": [(2, 2)], "2 × 2, then 1 × 1": [(2, 2), (1, 1)]}
LAYOUTS["1 × 1, then 2 × 2"] = LAYOUTS["2 × 2, then 1 × 1"][::-1]


def start(command: list[str], layout: tuple[int, int], log: pathlib.Path) -> subprocess.Popen:
    """Start the program in some processes of some devices each."""
    processes, devices = layout
    program = [sys.executable, "-m", "capjax"]
    if processes > 1:
        program = [sys.executable, str(LAUNCHER), f"--num_processes={processes}", f"--devices={devices}", "--"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    with open(log, "a") as file:
        return subprocess.Popen([*program, *command], stdout=file, stderr=subprocess.STDOUT, env=environment)


def finish(run: subprocess.Popen, log: pathlib.Path) -> None:
    """Wait for the end of a run."""
    if run.wait():
        sys.exit(log.read_text()[-3000:])


def read_losses(path: pathlib.Path) -> dict[tuple[str, int, int], float]:
    """Read losses by their kind and the steps that they are of: a stop makes two log lines of one."""
    log = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [0, *(row["step"] for row in log if "train/loss" in row)]
    trained = zip(steps, (row for row in log if "train/loss" in row), strict=False)
    losses = {("train/loss", first, row["step"]): row["train/loss"] for first, row in trained}
    return losses | {("val/loss", 0, row["step"]): row["val/loss"] for row in log if "val/loss" in row}


def train(args: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """Train on each layout and compare; return the rows of the table."""
    command = ["train", f"--config={args.config}", f"--config.dataset.data_dir={args.data_dir}"]
    command += [f"--config.features.dir={args.features_dir}", f"--config.train.num_steps={args.steps}"]
    command += ["--config.train.log_every=10"]
    command += [f"--config.eval.every={args.steps // 2}", f"--config.train.checkpoint_every={args.steps // 2}"]
    rows, runs = [], {}
    for name, parts in LAYOUTS.items():
        workdir, began = folder / name.replace(" ", "_"), time.perf_counter()
        for i, layout in enumerate(parts, 1):
            run = start([*command, f"--workdir={workdir}"], layout, folder / "log")
            if i < len(parts):
                while not (workdir / "checkpoints" / str(args.steps // 2)).exists():
                    time.sleep(0.1)  # then it is told to stop, as a scheduler would: a shorter run has another schedule
                run.send_signal(signal.SIGTERM)
                run.wait()
            else:
                finish(run, folder / "log")
        step, state = read_newest(workdir / "checkpoints")
        runs[name] = (read_losses(workdir / "metrics.jsonl"), state)
        losses, reference = runs[name][0], runs["1 × 1"][0]
        common = sorted(set(losses) & set(reference))
        worst = {
            kind: max(abs(losses[key] / reference[key] - 1) for key in common if key[0] == kind)
            for kind in ("train/loss", "val/loss")
        }
        apart = jax.tree.map(
            lambda x, y: np.abs(x - y).max() / np.abs(y).max(), state["params"], runs["1 × 1"][1]["params"]
        )
        seconds = time.perf_counter() - began
        rows.append(
            f"| {name} | {step} | {len(common)} | {worst['train/loss']:.1e} | {worst['val/loss']:.1e} | "
            f"{max(jax.tree.leaves(apart)):.1e} | {seconds:.0f} |"
        )
        print(rows[-1], flush=True)
    head = "| processes × devices | steps | losses compared | training loss | validation loss | parameters | seconds |"
    return [head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |", *rows]


def extract(args: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """Extract features by one process, and by two with an accident; return what to report."""
    command = ["features", f"--config={args.config}", f"--config.dataset.data_dir={args.data_dir}"]
    command += [f"--splits={args.splits}", *args.set]
    one, two, log = folder / "one", folder / "two", folder / "log"
    finish(start([*command, f"--config.features.dir={one}"], (1, 1), log), log)
    shards = sorted(str(path.relative_to(one)) for path in one.rglob("*.npy"))
    command.append(f"--config.features.dir={two}")
    run = start(command, (2, 1), log)
    while len(list(two.rglob("*.npy"))) < len(shards) // 2:
        time.sleep(0.1)
    victim = next(p for p in psutil.Process(run.pid).children() if "--process_id=1" in p.cmdline())
    victim.send_signal(signal.SIGKILL)
    status = run.wait()
    had = sum((two / shard).exists() for shard in shards)
    finish(start(command, (2, 1), log), log)
    files = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    there = sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
    _, differ, missing = filecmp.cmpfiles(one, two, files, shallow=False)
    if files != there or differ or missing:
        sys.exit(f"the stores differ: {differ or missing or set(files) ^ set(there)}")
    return [
        f"{len(shards)} files of features by one process; by two, of which one was killed when there were {had} "
        f"(the launcher ended with {status}), and started again: all {len(files)} files are equal."
    ]


def main() -> None:
    """Run what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a recipe")
    parser.add_argument("--data_dir", required=True, help="where its data lies")
    parser.add_argument("--features", action="store_true", help="extract features instead of training")
    parser.add_argument("--features_dir", help="where its features lie, to train from")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--splits", default="val", help="to extract features of")
    parser.add_argument(
        "--set", nargs=argparse.REMAINDER, default=[], help="further options of `capjax features`; comes last"
    )
    parser.add_argument("--out", type=pathlib.Path, help="a file to append to")
    args = parser.parse_args()
    quiet_orbax()
    with tempfile.TemporaryDirectory(prefix="layouts_") as folder:
        lines = (extract if args.features else train)(args, pathlib.Path(folder))
    print("\n".join(lines))
    if args.out:
        with open(args.out, "a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
