"""The job `capjax score`, run as a program: tables, files, errors, and no JAX."""

import json
import pathlib
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence

import pytest

from capjax.cli import main
from capjax.metrics.coco_caption import score

GOLDEN = pathlib.Path(__file__).parent / "golden" / "metrics"
references, systems = runpy.run_path(str(GOLDEN / "make_golden.py"))["load_captions"]()
METRICS = "--metrics=BLEU-1,BLEU-4,ROUGE-L,CIDEr-D"


def capjax_score(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capjax", "score", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


def write_references(path: pathlib.Path, captions: dict[int, Sequence[str]]) -> pathlib.Path:
    content = {
        "images": [{"id": image_id} for image_id in captions],
        "annotations": [
            {"image_id": image_id, "caption": text} for image_id in captions for text in captions[image_id]
        ],
    }
    path.write_text(json.dumps(content))
    return path


def write_results(path: pathlib.Path, captions: dict[int, str]) -> pathlib.Path:
    path.write_text(json.dumps([{"image_id": image_id, "caption": text} for image_id, text in captions.items()]))
    return path


@pytest.fixture
def truth(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_references(tmp_path / "captions.json", references)


def test_one_file(tmp_path: pathlib.Path, truth: pathlib.Path) -> None:
    results = write_results(tmp_path / "mine.json", systems["plain"])
    run = capjax_score(f"--references={truth}", f"--results={results}", f"--out={tmp_path / 'out'}", METRICS)
    assert run.returncode == 0, run.stderr
    expected = score(references, systems["plain"], ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"))
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: written[name] for name in expected.corpus} == expected.corpus
    assert f"{100 * expected.corpus['CIDEr-D']:.2f}" in run.stdout
    low, high = written["intervals"]["CIDEr-D"]
    assert low < written["CIDEr-D"] < high
    assert written["settings"]["bootstrap_samples"] == 1000
    assert written["health"]["num_captions"] == len(references)
    assert written["image_dependence"]["drop"] > 0.5
    rows = [json.loads(line) for line in (tmp_path / "out" / "per_image.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == list(references)
    assert {row["image_id"]: row["BLEU-4"] for row in rows} == expected.per_image["BLEU-4"]
    assert set(rows[0]) == {"image_id", *expected.corpus}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "per_image.jsonl"]


def test_few_images_make_a_note_of_what_cider_is_worth(tmp_path: pathlib.Path) -> None:
    truth = write_references(tmp_path / "one.json", {1: ["a dog runs", "the dog is running"]})
    results = write_results(tmp_path / "mine.json", {1: "a dog runs"})
    run = capjax_score(
        f"--references={truth}", f"--results={results}", "--metrics=BLEU-1,CIDEr-D", "--bootstrap_samples=0"
    )
    assert "df: references of 1 image;" in run.stdout and re.search(r"BLEU-1 +100\.00", run.stdout)
    assert "CIDEr-D: words are weighed by the references of these images alone" in run.stdout
    run = capjax_score(f"--references={truth}", f"--results={results}", "--metrics=BLEU-1", "--bootstrap_samples=0")
    assert "weighed" not in run.stdout


def test_scores_of_which_none_can_be_computed_are_an_error(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")  # without Java
    truth = write_references(tmp_path / "one.json", {1: ["a dog runs"], 2: ["a cat"]})
    results = write_results(tmp_path / "mine.json", {1: "a dog runs", 2: "a cat"})
    command = ["score", f"--references={truth}", f"--results={results}", "--bootstrap_samples=0"]
    assert main([*command, "--metrics=SPICE"]) == 1
    assert "none of what was asked for can be computed: SPICE needs" in capsys.readouterr().err
    assert main([*command, "--metrics=SPICE,BLEU-1"]) == 0
    assert "SPICE skipped: SPICE needs" in capsys.readouterr().out


def test_two_files_are_compared(tmp_path: pathlib.Path, truth: pathlib.Path) -> None:
    good = write_results(tmp_path / "good.json", systems["plain"])
    bad = write_results(tmp_path / "bad.json", systems["nasty"])
    run = capjax_score(
        f"--references={truth}", f"--results={good}", f"--results={bad}", f"--out={tmp_path / 'out'}", METRICS
    )
    assert run.returncode == 0, run.stderr
    assert "bad less good" in run.stdout
    for name in ("good", "bad"):
        assert "CIDEr-D" in json.loads((tmp_path / "out" / name / "metrics.json").read_text())
        assert len((tmp_path / "out" / name / "per_image.jsonl").read_text().splitlines()) == len(references)
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["baseline"] == "good"
    assert comparison["compared"]["bad"]["CIDEr-D"]["difference"] < 0
    assert comparison["compared"]["bad"]["CIDEr-D"]["p_value"] < 0.01


def test_files_of_one_name_are_told_apart(tmp_path: pathlib.Path, truth: pathlib.Path, capsys) -> None:
    (tmp_path / "x").mkdir()
    files = {"a.json": "plain", "x/a.json": "nasty", "1-a.json": "plain"}
    results = [f"--results={write_results(tmp_path / name, systems[which])}" for name, which in files.items()]
    assert main(["score", f"--references={truth}", *results, f"--out={tmp_path / 'out'}", METRICS]) == 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["baseline"] == "1-a" and list(comparison["compared"]) == ["2-a", "3-1-a"]
    differences = [comparison["compared"][name]["CIDEr-D"]["difference"] for name in ("2-a", "3-1-a")]
    assert differences[0] < 0 and differences[1] == 0
    printed = capsys.readouterr().out
    assert "2-a less 1-a" in printed and "3-1-a less 1-a" in printed


def test_no_jax(tmp_path: pathlib.Path, truth: pathlib.Path) -> None:
    results = write_results(tmp_path / "mine.json", systems["plain"])
    program = (
        "import sys; from capjax import cli;"
        f"status = cli.main(['score', '--references={truth}', '--results={results}', '{METRICS}']);"
        "loaded = {'jax', 'flax', 'tensorflow_datasets', 'torch'} & set(sys.modules);"
        "sys.exit(str(loaded) if loaded else status)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_part_of_the_references(tmp_path: pathlib.Path, truth: pathlib.Path) -> None:
    part = {image_id: text for image_id, text in systems["plain"].items() if image_id % 2}
    results = write_results(tmp_path / "part.json", part)
    refused = capjax_score(f"--references={truth}", f"--results={results}", METRICS)
    assert refused.returncode == 1
    assert "--images=results" in refused.stderr
    out = tmp_path / "out"
    run = capjax_score(f"--references={truth}", f"--results={results}", METRICS, "--images=results", f"--out={out}")
    assert run.returncode == 0, run.stderr
    expected = score({image_id: references[image_id] for image_id in part}, part, ("CIDEr-D",)).corpus["CIDEr-D"]
    assert json.loads((out / "metrics.json").read_text())["CIDEr-D"] == expected


def test_saved_df_and_training_captions(tmp_path: pathlib.Path, truth: pathlib.Path) -> None:
    results = write_results(tmp_path / "mine.json", systems["plain"])
    train = write_references(tmp_path / "train.json", {0: references[0], 500: ["a train traveling over a bridge"]})
    common = [f"--references={truth}", f"--results={results}", METRICS, "--bootstrap_samples=0"]
    first = capjax_score(*common, f"--save_df={tmp_path / 'df.npz'}", f"--out={tmp_path / 'a'}")
    second = capjax_score(
        *common, f"--df={tmp_path / 'df.npz'}", f"--out={tmp_path / 'b'}", f"--train_captions={train}"
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert two["CIDEr-D"] == pytest.approx(one["CIDEr-D"], abs=1e-12)
    assert "saved table" in two["settings"]["df"]
    assert one["intervals"] == {}
    assert two["health"]["novel_captions"] == pytest.approx(1 - 1 / len(references))
    assert two["leakage"]["shared_image_ids"] == [0]
    assert "1 test images are in the training set" in second.stdout


GOOD_RESULTS = [{"image_id": 1, "caption": "a dog"}]
GOOD_REFERENCES = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}


@pytest.mark.parametrize(
    ("references_text", "results_text", "message"),
    [
        (GOOD_REFERENCES, [*GOOD_RESULTS, {"image_id": 1, "caption": "a cat"}], "found several for image 1"),
        (GOOD_REFERENCES, [{"image_id": 2, "caption": "a cat"}], "have no caption (such as image 1)"),
        (GOOD_REFERENCES, [*GOOD_RESULTS, {"image_id": 2, "caption": "a"}], "without references (such as 2)"),
        (GOOD_REFERENCES, [{"image_id": "1", "caption": "a"}], "an integer under \"image_id\" in entry 0, found '1'"),
        (GOOD_REFERENCES, [{"image_id": True, "caption": "a"}], "found true or false"),
        (GOOD_REFERENCES, [{"image_id": 1}], 'a text under "caption" in entry 0, found nothing'),
        (GOOD_REFERENCES, [{"image_id": 1, "caption": None}], "found nothing"),
        (GOOD_REFERENCES, ["a dog"], "an object"),
        (GOOD_REFERENCES, [], "empty list"),
        (GOOD_REFERENCES, {"1": "a dog"}, "expected results in the COCO layout"),
        (GOOD_REFERENCES, '[{"image_id": NaN, "caption": "a"}]', "NaN is no JSON value"),
        (GOOD_REFERENCES, '[{"image_id": 1,', "found a mistake in line 1"),
        (GOOD_REFERENCES, b"\xff\xfe\x00[]", "expected JSON in UTF-8"),
        (GOOD_REFERENCES, "[" * 100_000, "nested too deep"),
        (GOOD_REFERENCES, '[{"image_id": ' + "9" * 5000 + ', "caption": "a"}]', "numbers of ordinary length"),
        (GOOD_REFERENCES, [{"image_id": 1, "caption": "dog " * 3000}], "10,000 characters, found 12,000 in entry 0"),
        (GOOD_REFERENCES, None, "no such file"),
        (GOOD_RESULTS, GOOD_RESULTS, "looks like a results file"),
        ({"images": [{"id": 1}], "annotations": []}, GOOD_RESULTS, "no image with any"),
        ({"images": [{}], "annotations": []}, GOOD_RESULTS, 'an integer under "id" in images[0], found nothing'),
        ({"images": 3, "annotations": []}, GOOD_RESULTS, 'a list under "images"'),
    ],
)
def test_bad_files(tmp_path: pathlib.Path, capsys, references_text, results_text, message: str) -> None:
    from capjax import cli

    for name, content in (("references.json", references_text), ("results.json", results_text)):
        if content is not None:
            text = content if isinstance(content, str | bytes) else json.dumps(content)
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    out = tmp_path / "out"
    arguments = [f"--references={tmp_path / 'references.json'}", f"--results={tmp_path / 'results.json'}"]
    assert cli.main(["score", *arguments, METRICS, f"--out={out}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("capjax: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--metrics=BLEU-5", "expected metrics out of BLEU-1"),
        ("--metrics=", "got none"),
        ("--bootstrap_samples=1", "expected 0 (none) or at least 2"),
        ("--confidence=95", "between 0 and 1"),
        ("--seed=-1", "expected 0 or more"),
        ("--df=/nowhere/df.npz", "no such df table"),
    ],
)
def test_bad_flags(tmp_path: pathlib.Path, truth: pathlib.Path, capsys, flag: str, message: str) -> None:
    from capjax import cli

    results = write_results(tmp_path / "mine.json", systems["plain"])
    assert cli.main(["score", f"--references={truth}", f"--results={results}", flag]) == 1
    assert message in capsys.readouterr().err


def test_images_and_annotations_that_do_not_belong_together(tmp_path: pathlib.Path) -> None:
    content = {
        "images": [{"id": 2}, {"id": 1}, {"id": 4}],
        "annotations": [{"image_id": i, "caption": f"a dog number {i}"} for i in (1, 2, 3)],
    }
    (tmp_path / "captions.json").write_text("\ufeff" + json.dumps(content))
    results = write_results(tmp_path / "mine.json", {1: "a dog number 1", 2: "a dog"})
    out = tmp_path / "out"
    run = capjax_score(f"--references={tmp_path / 'captions.json'}", f"--results={results}", METRICS, f"--out={out}")
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line)["image_id"] for line in (out / "per_image.jsonl").read_text().splitlines()]
    assert rows == [2, 1]


def test_files_in_the_home_directory_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    references = {"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog runs"}]}
    (tmp_path / "references.json").write_text(json.dumps(references))
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1, "caption": "a dog"}]))
    assert main(["score", "--references=~/references.json", "--results=~/results.json", "--metrics=BLEU-1"]) == 0
    assert "BLEU-1" in capsys.readouterr().out
