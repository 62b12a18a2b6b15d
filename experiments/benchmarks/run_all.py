"""Every benchmark that an accelerator is for, in one command and in less than nine minutes.

    python experiments/benchmarks/run_all.py --out=experiments/results/h100

Each runs as a process of its own and writes its table to OUT; `log.txt` there has what all of them said, the rows as
they came, so that a benchmark which is stopped or fails leaves what it had. No network is needed. On a machine without
an accelerator the sizes are those of a CPU.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

from tqdm import tqdm

HERE = pathlib.Path(__file__).parent
CPU = {
    "decoder_float32.md": ["decoder.py", "--rounds=3", "--profile"],
    "encoder_float32.md": ["encoder.py", "--rounds=3", "--profile"],
    "self_critical.md": ["self_critical.py", "--rounds=3", "--images=16"],
}
ACCELERATOR = {
    "encoder_bfloat16.md": ["encoder.py", "--dtype=bfloat16", "--batch_sizes", "1", "64", "256", "1024", "--profile"],
    "decoder_bfloat16.md": [
        *("decoder.py", "--dtype=bfloat16", "--train_batches", "64", "512", "4096"),
        *("--batches", "1", "256", "1024", "--beam_batches", "1", "256", "--profile"),
    ],
    "decoder_float32.md": [
        *("decoder.py", "--train_batches", "64", "1024", "--batches", "1", "256", "--beam_batches", "256"),
    ],
    "self_critical.md": ["self_critical.py", "--images=256", "--profile"],
    "encoder_float32.md": ["encoder.py", "--batch_sizes", "1", "256"],
}


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument("--minutes", type=float, default=9, help="when what is running is stopped")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch is to have memory too
        "PYTHONUNBUFFERED": "1",
    }
    backend = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    failed = []
    with open(args.out / "log.txt", "w") as log:
        for table, (script, *options) in tqdm((CPU if backend == "cpu" else ACCELERATOR).items()):
            command = [sys.executable, str(HERE / script), *options, f"--out={args.out / table}"]
            print(f"\n$ {' '.join(command[1:])}", file=log, flush=True)
            start = time.monotonic()
            try:
                left = max(1, end - start)
                done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=left)
                outcome = f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                outcome = "stopped, out of time"
            print(f"{outcome} after {time.monotonic() - start:.0f} s", file=log, flush=True)
            if outcome != "exit status 0":
                failed.append(f"{table}: {outcome}")
    if failed:
        sys.exit("\n".join([*failed, f"see {args.out / 'log.txt'}"]))


if __name__ == "__main__":
    main()
