"""Exported captioners against `capjax caption`, in an environment that has jax, numpy and pillow alone."""

import importlib.metadata
import json
import pathlib
import re
import signal
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

from capjax.captioning.loaded_model import load_model
from capjax.captioning.photos import PhotoCaptioner, find_photos
from capjax.cli import main
from capjax.errors import CapjaxError
from capjax.models import DECODERS
from capjax.standalone.exported_captioner import ExportedCaptioner
from tests.random_models import model_of_features, small_model

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model_0_1"
PHOTOS = sorted(map(str, (GOLDEN / "photos").iterdir()))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Run Python with jax, numpy, pillow, what they need, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    wanted, seen = ["jax", "numpy", "pillow"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        needs = map(Requirement, distribution.requires or ())
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(distribution.locate_file(top))

    def run(*command):
        return subprocess.run(
            [sys.executable, "-S", *command],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=240,
        )

    names = ("capjax", "flax", "jaxtyping", "flatbuffers", "optax", "absl")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert run("-c", code).stdout == "[]\n"
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model that capjax 0.1 wrote, exported with a beam search."""
    path = tmp_path_factory.mktemp("exported") / "captioner.pyz"
    options = [f"--model={GOLDEN / 'model'}", f"--out={path}", "--beam_size=3", "--num_captions=2"]
    subprocess.run([sys.executable, "-m", "capjax", "export", *options], check=True)
    return path


def test_without_capjax_it_says_what_capjax_says(bare, exported, capsys):
    options = ["--json", "--beam_size=3", "--num_captions=2", "--batch_size=3"]
    assert main(["caption", f"--model={GOLDEN / 'model'}", *options, *PHOTOS]) == 0
    here = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = bare(str(exported), "--json", "--batch_size=3", *PHOTOS)
    assert done.returncode == 0, done.stderr
    there = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(there) == 8
    for a, b in zip(there, here, strict=True):
        assert (a["file"], a["caption"]) == (b["file"], b["caption"])
        assert a["log_prob"] == pytest.approx(b["log_prob"], abs=1e-4)
        assert [x["caption"] for x in a["alternatives"]] == [x["caption"] for x in b["alternatives"]]


def test_broken_photos_are_told_and_passed_over(bare, exported, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    done = bare(str(exported), str(tmp_path / "broken.png"), PHOTOS[0], str(tmp_path / "none.png"))
    assert done.returncode == 1
    assert len([line for line in done.stdout.splitlines() if line.startswith(PHOTOS[0])]) == 1
    assert re.search(r"broken\.png: expected an? ", done.stderr)
    assert re.search(r"none\.png: expected a readable image file", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("output", "status"), [("| true; exit ${PIPESTATUS[0]}", 141), ("> /dev/full", 1), (">&-", 0)])
def test_an_output_that_ends_is_no_traceback(exported, output, status):
    command = f'"$0" "$1" --json --batch_size=1 "$2" "$2" {output}'
    shell = ["bash", "-c", command, sys.executable, str(exported), PHOTOS[0]]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_an_interrupt_is_one_line(exported):
    command = [sys.executable, str(exported), "--batch_size=1", *[PHOTOS[0]] * 20_000]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline()
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 130 and told.endswith("interrupted\n") and "Traceback" not in told


def test_without_pillow_it_says_what_to_install(exported):
    done = subprocess.run(
        [sys.executable, "-S", str(exported), PHOTOS[0]], env={"PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: expected jax, numpy and pillow, \w+ is not there; pip install .*\n", done.stderr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calling_convention_version": 99}, r"exported with jax .*calling convention 99.*pip install 'jax=="),
        ({"format_version": 7}, "expected format 1"),
    ],
)
def test_a_file_of_another_version_is_one_line(bare, exported, tmp_path, change, message):
    path = tmp_path / "other.pyz"
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "description.json":
                content = json.dumps(json.loads(content) | change)
            new.writestr(name, content)
    done = bare(str(path), PHOTOS[0])
    assert done.returncode == 1
    assert re.fullmatch(f"error: .*{message}.*\n", done.stderr)


def test_a_file_of_something_else_is_one_line(tmp_path):
    (tmp_path / "x.pyz").write_bytes(b"no zip")
    with pytest.raises(CapjaxError, match="expected a file that `capjax export` wrote"):
        ExportedCaptioner(str(tmp_path / "x.pyz"))


SEARCHES = [
    ["--method=greedy"],
    ["--beam_size=3", "--length_penalty=0.7"],
    ["--method=sample", "--top_k=5", "--seed=3"],
]


EXPORTED = [(name, SEARCHES[0]) for name in sorted(DECODERS)]
EXPORTED += [(name, search) for name in ("par_inject", "transformer") for search in SEARCHES[1:]]


@pytest.mark.parametrize(("name", "search"), EXPORTED, ids=str)
def test_every_decoder_and_search_exports(tmp_path, wrong_types_allowed, name, search):
    """For any number of photos, which is a symbol and no int, and for other devices than this one's."""
    folder = small_model(tmp_path / "model", name)
    out = tmp_path / "captioner.pyz"
    assert main(["export", f"--model={folder}", f"--out={out}", "--max_length=8", *search]) == 0
    description = json.loads(zipfile.ZipFile(out).read("description.json"))
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    model = load_model(str(folder))
    settings = type(model.search).from_dict(description["search"])
    files = find_photos(PHOTOS)
    expected = [caption.text for caption in PhotoCaptioner([model])(files, settings)]
    assert len(set(expected)) > 1, "the photos matter"
    for batch_size in (1, 5):
        captioner, contents = ExportedCaptioner(str(out), batch_size), [file.read_bytes() for file in files]
        assert [captions[0].text for captions in captioner(contents)] == expected
        assert [captions[0].text for captions in captioner(contents[:2])] == expected[:2]
        assert captioner([]) == []
        assert captioner._run._cache_size() == 1, "fewer photos are filled up"


def test_from_a_program(bare, exported):
    code = (
        f"import sys; sys.path.insert(0, {str(exported)!r})\n"
        "from exported_captioner import ExportedCaptioner\n"
        f"captioner = ExportedCaptioner({str(exported)!r})\n"
        f"(captions,) = captioner([open({PHOTOS[0]!r}, 'rb').read()])\n"
        "print(len(captions), captions[0].text, captions[0].log_prob)"
    )
    done = bare("-c", code)
    assert done.returncode == 0, done.stderr
    number, *words, log_prob = done.stdout.split()
    assert number == "2" and len(words) > 2 and float(log_prob) < 0


def test_a_search_longer_than_the_decoder_was_built_for_is_refused(tmp_path, capsys):
    folder = small_model(tmp_path / "model", "transformer")
    longest = load_model(str(folder)).captioner.decoder.max_length
    options = [f"--model={folder}", f"--out={tmp_path / 'x.pyz'}", f"--max_length={longest + 1}"]
    assert main(["export", *options]) == 1
    assert f"expected a search for at most {longest} words" in capsys.readouterr().err


def test_a_model_of_imported_features_is_refused(tmp_path, capsys):
    model_of_features(tmp_path / "model")
    assert main(["export", f"--model={tmp_path / 'model'}", f"--out={tmp_path / 'x.pyz'}"]) == 1
    assert "has no encoder to look at photos with; capjax evaluate" in capsys.readouterr().err
    assert not (tmp_path / "x.pyz").exists()
