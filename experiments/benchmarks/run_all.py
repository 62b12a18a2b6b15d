"""Every benchmark that an accelerator is for, in one command and in less than nine minutes.

    python experiments/benchmarks/run_all.py --out=experiments/results/h100

On a GPU nearly all of the time is compiling (XLA and `torch.compile` try many kernels for each operation). So
everything is compiled first, all benchmarks side by side, into caches; then they run one after the other, the most
telling first, each as a process of its own that writes its table to OUT. `log.txt` there has what all of them said, the
rows as they came, so that a benchmark which is stopped or fails leaves what it had. No network is needed. On a machine
without an accelerator the sizes are those of a CPU, and nothing is compiled ahead.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import TextIO

from tqdm import tqdm

HERE = pathlib.Path(__file__).parent
CPU = {
    "decoder_float32.md": ["decoder.py", "--rounds=3", "--profile"],
    "encoder_float32.md": ["encoder.py", "--rounds=3", "--profile"],
    "self_critical.md": ["self_critical.py", "--rounds=3", "--images=16"],
}
ACCELERATOR = {
    "training_512.md": [
        *("decoder.py", "--units=512", "--dtype=bfloat16", "--rounds=8", "--train_batches", "64", "1024", "4096"),
        *("--batches", "--beam_batches", "--profile"),
    ],
    "encoder.md": ["encoder.py", "--dtype=bfloat16", "--rounds=8", "--batch_sizes", "256", "1", "--profile"],
    "decoding_512.md": [
        *("decoder.py", "--units=512", "--dtype=bfloat16", "--rounds=8", "--train_batches"),
        *("--batches", "1", "256", "1024", "--beam_batches", "1", "256", "--profile"),
    ],
    "training_300.md": [
        *("decoder.py", "--units=300", "--dtype=bfloat16", "--rounds=8", "--train_batches", "64", "1024"),
        *("--batches", "--beam_batches", "--profile"),
    ],
    "self_critical.md": ["self_critical.py", "--images=256", "--rounds=8", "--profile"],
    "decoding_300.md": [
        *("decoder.py", "--units=300", "--dtype=bfloat16", "--rounds=8", "--train_batches"),
        *("--batches", "1", "256", "--beam_batches", "256"),
    ],
}


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder")
    parser.add_argument("--minutes", type=float, default=9, help="when what is running is stopped")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    backend = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    benchmarks = CPU if backend == "cpu" else ACCELERATOR
    failed = []
    with open(args.out / "log.txt", "w") as log, tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch is to have memory too, and all at once when compiling
            "PYTHONUNBUFFERED": "1",
        }
        if backend != "cpu":
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
                # Else a training step takes most of a minute to compile: hundreds of kernels tried for each product.
                "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false",
            }
            compile_ahead(benchmarks, pathlib.Path(caches), environment, log, 0.45 * 60 * args.minutes)
        for table, (script, *options) in tqdm(benchmarks.items()):
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


def compile_ahead(
    benchmarks: dict[str, list[str]], caches: pathlib.Path, environment: dict[str, str], log: TextIO, seconds: float
) -> None:
    """Fill the caches with all benchmarks' programs, side by side; what takes longer than `seconds` is stopped."""
    start = time.monotonic()
    processes = {}
    for table, (script, *options) in benchmarks.items():
        command = [sys.executable, str(HERE / script), *options, "--rounds=0", f"--out={caches / table}"]
        processes[table] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    while processes:
        if time.monotonic() - start > seconds:
            for process in processes.values():
                process.kill()
        for table in [table for table, process in processes.items() if process.poll() is not None]:
            status = processes.pop(table).returncode
            print(f"{table} compiled: {status} after {time.monotonic() - start:.0f} s", file=log, flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
