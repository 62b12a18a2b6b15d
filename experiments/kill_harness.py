"""Kill a training run at random moments, again and again, and compare it with one that nobody touched.

    python experiments/kill_harness.py --kills=100 --out=experiments/results/survival.md
    python experiments/kill_harness.py --kills=20 --processes=2 --devices=2
    python experiments/kill_harness.py --kills=10 --config=flickr8k:imported --data_dir=DATA --features_dir=FEATURES

Trains a recipe from features, unless told otherwise `scenes`, for a few hundred steps, saving every few. The run is
killed with SIGKILL after a random time, in the middle of a save as well as anywhere else; started again, it must go on
from the newest step that was saved, none of which may get lost. Whenever it comes to its end, parameters, optimiser and
kept model must equal those of an undisturbed run bit for bit, and it begins anew, until there were so many kills. Of
several processes a random one is killed, and the launcher (`experiments/launch/local.py`) is left to notice.

The row has recipe, processes × devices, steps of the run, kills, those during a save and those before the next save was
done, runs that came to their end and were compared, the outcome, and minutes.
"""

import argparse
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

import jax
import numpy as np
import psutil
from tqdm import tqdm

from capjax.checkpoint import quiet_orbax, read_newest
from capjax.model_directory import load_model_directory

LAUNCHER = pathlib.Path(__file__).parent / "launch" / "local.py"


class Run:
    """A run in a workdir, in one process or several."""

    def __init__(self, folder: pathlib.Path, name: str, args: argparse.Namespace) -> None:
        """Say how it is started."""
        self.workdir = folder / name
        self.checkpoints = self.workdir / "checkpoints"
        self._log = folder / f"{name}.log"
        saving = max(1, args.steps // 40)
        command = ["train", f"--config={args.config}", f"--config.train.num_steps={args.steps}"]
        command += [f"--workdir={self.workdir}", f"--config.dataset.data_dir={args.data_dir}"]
        command += [f"--config.features.dir={args.features_dir}"]
        command += [f"--config.train.checkpoint_every={saving}", f"--config.eval.every={max(1, args.steps // 4)}"]
        command += ["--config.train.log_every=10", "--config.eval.max_images=64", "--config.eval.batch_size=64"]
        self._command = [sys.executable, "-m", "capjax", *command]
        if args.processes > 1:
            launcher = [sys.executable, str(LAUNCHER), f"--num_processes={args.processes}", f"--devices={args.devices}"]
            self._command = [*launcher, "--", *command]

    def start(self) -> subprocess.Popen:
        """Start it, or go on with it."""
        with open(self._log, "w") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def finish(self) -> None:
        """Let it run to its end."""
        if self.start().wait():
            sys.exit(f"{self.workdir} did not finish:\n{self._log.read_text()[-3000:]}")

    def saved_step(self) -> int:
        """Return the newest step that is saved."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=0)

    def resumed_step(self) -> int | None:
        """Return the step that the run says it goes on from, None where it did not come so far."""
        said = re.search(r"resuming .* from step (\d+)", self._log.read_text())
        return int(said[1]) if said else None


def prepare_scenes(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Render the pictures and compute their features."""
    args.data_dir, args.features_dir = folder / "data", folder / "features"
    capjax = [sys.executable, "-m", "capjax"]
    command = ["data", "prepare", "scenes", f"--data_dir={args.data_dir}"]
    subprocess.run([*capjax, *command], check=True, capture_output=True)
    command = ["features", "--config=scenes", f"--config.features.dir={args.features_dir}"]
    subprocess.run([*capjax, *command, f"--config.dataset.data_dir={args.data_dir}"], check=True, capture_output=True)


def trainers(run: subprocess.Popen) -> list[psutil.Process]:
    """List the processes that train."""
    try:
        launcher = psutil.Process(run.pid)
        if str(LAUNCHER) not in launcher.cmdline():
            return [launcher]
        return [process for process in launcher.children() if "capjax" in process.cmdline()]
    except psutil.NoSuchProcess:
        return []


def kill(run: subprocess.Popen, checkpoints: pathlib.Path, chance: random.Random) -> str | None:
    """Kill one process of a run; wait for what is left of it. Return what went on, or None if it had ended before."""
    victims = trainers(run)
    if run.poll() is not None or not victims:
        return None
    try:
        chance.choice(victims).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return None
    run.wait(timeout=120)
    return "saving" if any(checkpoints.glob("*.orbax-checkpoint-tmp*")) else "training"


def main() -> None:
    """Run the harness."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--config", default="scenes", help="a recipe that trains from features")
    parser.add_argument("--data_dir", type=pathlib.Path, help="where its data lies; scenes are made")
    parser.add_argument("--features_dir", type=pathlib.Path, help="where its features lie")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices of each of several processes")
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of training before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="where data and runs go; a temporary one by default")
    parser.add_argument("--out", type=pathlib.Path, help="a file, to which a row is appended")
    args = parser.parse_args()
    quiet_orbax()
    folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="kill_harness_"))
    folder.mkdir(parents=True, exist_ok=True)
    if args.config == "scenes":
        prepare_scenes(args, folder)

    whole, killed = Run(folder, "whole", args), Run(folder, "killed", args)
    whole.finish()
    chance, count = random.Random(args.seed), Counter[str]()
    start = time.perf_counter()
    with tqdm(total=args.kills) as bar:
        while count["kills"] < args.kills:
            saved = killed.saved_step()
            run = killed.start()
            while run.poll() is None and not killed.checkpoints.is_dir():
                time.sleep(0.05)
            # From the middle of setting up to some seconds of training.
            time.sleep(chance.uniform(2.0, 6.0 + args.longest))
            what = kill(run, killed.checkpoints, chance)
            if saved and killed.resumed_step() not in (None, saved):
                sys.exit(f"a run with step {saved} saved went on from step {killed.resumed_step()}")
            if killed.saved_step() < saved:
                sys.exit(f"step {saved} was saved, and is gone: {sorted(killed.checkpoints.iterdir())}")
            if what is None:  # it has finished: compare it, and begin again
                compare(whole, killed)
                count["runs"] += 1
                shutil.rmtree(killed.workdir)
                continue
            count.update({"kills": 1, what: 1, "before the next save": int(killed.saved_step() == saved)})
            bar.update()
    killed.finish()
    compare(whole, killed)
    minutes = (time.perf_counter() - start) / 60
    row = [args.config, f"{args.processes} × {args.devices}", args.steps, count["kills"], count["saving"]]
    row += [count["before the next save"], count["runs"] + 1, "equal", f"{minutes:.0f}"]
    row = f"| {' | '.join(map(str, row))} |"
    print(row)
    if args.out:
        with open(args.out, "a") as file:
            file.write(row + "\n")
    if args.folder is None:
        shutil.rmtree(folder)


def compare(whole: Run, killed: Run) -> None:
    """End the program unless state and kept model are equal bit for bit."""
    states = [read_newest(run.checkpoints) for run in (whole, killed)]
    models = [load_model_directory(run.workdir / "model").variables for run in (whole, killed)]
    for what, (a, b) in {"state": states, "model": models}.items():
        same = jax.tree.structure(a) == jax.tree.structure(b)
        if not same or not all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))):
            sys.exit(f"the {what} of {killed.workdir} differs from that of {whole.workdir}")


if __name__ == "__main__":
    main()
