"""A wheel installed outside of a checkout: all that capjax needs is in it, recipes and encoder included."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "model_0_1"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with capjax alone, installed from a wheel that was built from a copy of what git would ship."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "experiments/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(folder / "source")]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("capjax-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder / 'site'}", str(wheel)], check=True)
    return folder


def run(installed, *command):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=installed,
        env={"PYTHONPATH": str(installed / "site"), "PATH": "", "HOME": str(installed), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_what_runs_and_it_captions_as_the_checkout_does(installed):
    where = run(installed, "-c", "import capjax; print(capjax.__file__)").strip()
    assert pathlib.Path(where).is_relative_to(installed / "site")
    there = run(installed, "-m", "capjax", "caption", f"--model={GOLDEN / 'model'}", str(GOLDEN / "photos"))
    here = subprocess.run(
        [sys.executable, "-m", "capjax", "caption", f"--model={GOLDEN / 'model'}", str(GOLDEN / "photos")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert there == here.stdout != ""


def test_recipes_the_encoder_and_the_pages_parts_are_there(installed):
    recipes = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    code = "from capjax.config import load_config; print(load_config('reference').recipe, load_config('scenes').recipe)"
    assert run(installed, "-c", code).split() == ["reference", "scenes"]
    site = installed / "site" / "capjax"
    assert recipes <= {path.stem for path in (site / "configs").glob("*.py")}
    shipped = {path.relative_to(ROOT / "capjax") for path in (ROOT / "capjax").rglob("*") if path.is_file()}
    shipped = {path for path in shipped if "__pycache__" not in path.parts}
    assert [str(path) for path in sorted(shipped) if not (site / path).exists()] == []
