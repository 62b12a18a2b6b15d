"""Every job by its command, on image files: prepare, features, train, evaluate, caption; and what users get wrong."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from capjax import evaluate
from capjax.cli import main
from capjax.errors import CapjaxError
from capjax.evaluation import pages
from capjax.pretrained.encoder_file import EncoderConfig, save_encoder
from capjax.pretrained.random_encoder import random_encoder
from capjax.text.vocabulary import SPECIAL_WORDS
from tests.toy_project import COLOURS, ENCODER, config, prepare


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's folder after prepare, features and train."""
    root = tmp_path_factory.mktemp("project")
    prepare(root)
    assert main(["features", *config(root)]) == 0
    assert main(["train", *config(root), "--config.train.num_steps=180", f"--workdir={root / 'run'}"]) == 0
    return root


def test_captions_of_files_and_folders(project, capsys):
    photos = project / "photos"
    assert main(["caption", f"--model={project / 'run' / 'model'}", "--json", str(photos / "03.png"), str(photos)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [pathlib.Path(row["file"]).name for row in rows] == ["03.png", *sorted(p.name for p in photos.iterdir())]
    assert all(set(row) == {"file", "caption", "log_prob"} and row["log_prob"] <= 0 for row in rows)
    assert not any(special in row["caption"] for row in rows for special in SPECIAL_WORDS)
    right = [
        list(COLOURS)[i % 4] in row["caption"] and ("circle", "box")[i // 4 % 2] in row["caption"]
        for i, row in enumerate(rows[1:])
    ]
    assert np.mean(right[:24]) > 0.9


def test_model_directory_is_self_contained(project, tmp_path, capsys):
    photo = str(project / "photos" / "05.png")
    main(["caption", f"--model={project / 'run' / 'model'}", "--json", photo])
    here = capsys.readouterr().out
    shutil.copytree(project / "run" / "model", tmp_path / "elsewhere")
    main(["caption", f"--model={tmp_path / 'elsewhere'}", "--json", photo])
    assert capsys.readouterr().out == here


def test_broken_images_are_told_and_passed_over(project, tmp_path, capsys):
    shutil.copy(project / "photos" / "00.png", tmp_path / "b.png")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(b"")
    Image.new("L", (1, 1)).save(tmp_path / "d.png")
    Image.new("CMYK", (90, 60)).save(tmp_path / "e.jpg")
    names = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg", "d.png", "e.jpg", "missing.jpg")]
    assert main(["caption", f"--model={project / 'run' / 'model'}", "--json", *names]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == names
    assert ["error" in row for row in rows] == [True, False, True, True, False, True]
    assert main(["caption", f"--model={project / 'run' / 'model'}", *names[:2]]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(names[1]) and names[0] in captured.err and "Traceback" not in captured.err


def test_a_sampled_caption_does_not_depend_on_its_batch(project, capsys):
    photos = project / "photos"
    command = ["caption", f"--model={project / 'run' / 'model'}", "--json", "--temperature=2.0", "--seed=4"]
    main([*command, str(photos), "--batch_size=8"])
    together = {row["file"]: row["caption"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    main([*command, str(photos / "07.png")])
    alone = json.loads(capsys.readouterr().out)
    assert together[alone["file"]] == alone["caption"]
    main([*command[:-1], "--seed=5", str(photos)])
    other = {row["file"]: row["caption"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert other != together


def test_evaluation_scores_every_image_once(project, tmp_path):
    model = project / "run" / "model"
    command = ["evaluate", f"--model={model}", "--split=val", "--metrics=BLEU-4,CIDEr-D", "--bootstrap_samples=50"]
    assert main([*command, f"--out={tmp_path}", "--batch_size=5"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    per_image = [json.loads(line) for line in (tmp_path / "per_image.jsonl").read_text().splitlines()]
    assert len(results) == len({row["image_id"] for row in results}) == 8
    assert [{key: row[key] for key in results[0]} for row in per_image] == results
    assert all(row["log_prob"] <= 0 and row["file_name"] and len(row["references"]) == 2 for row in per_image)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["CIDEr-D"] == pytest.approx(np.mean([row["CIDEr-D"] for row in per_image]))
    assert metrics["settings"]["decoder"]["method"] == "greedy"
    assert metrics["settings"]["num_images"] == 8
    # Written as people do, with capitals and full stops, which a captioner leaves out.
    said = [[text.lower().rstrip(".") for text in (row["caption"], *row["references"])] for row in per_image]
    assert metrics["exact_match"] == np.mean([caption in references for caption, *references in said]) > 0.5
    page = (tmp_path / "report.html").read_text()
    assert "data:image/jpeg" in page and "CIDEr-D" in page
    assert (tmp_path / "sheet.png").exists()

    (tmp_path / "explained.png").write_bytes(b"of an earlier evaluation")
    beams = tmp_path / "beams"
    assert main([*command, f"--out={beams}", "--beam_size=3", "--num_captions=2"]) == 0
    assert json.loads((beams / "metrics.json").read_text())["settings"]["decoder"]["beam_size"] == 3
    assert main([*command, f"--out={tmp_path}", "--max_images=2"]) == 0
    assert not (tmp_path / "explained.png").exists(), "that of other captions"


def test_an_evaluation_that_fails_half_way_leaves_one_evaluation(project, tmp_path, monkeypatch):
    """The earlier one, as long as the new captions are not written; then nothing of it."""
    command = ["evaluate", f"--model={project / 'run' / 'model'}", "--split=val", f"--out={tmp_path}"]
    command += ["--metrics=CIDEr-D", "--bootstrap_samples=0"]
    assert main(command) == 0
    before = {path.name for path in tmp_path.iterdir()}

    def no_room(*_):
        raise CapjaxError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_json", no_room)
        assert main([*command, "--max_images=2"]) == 1
    assert before == {path.name for path in tmp_path.iterdir()}
    assert len(json.loads((tmp_path / "results.json").read_text())) == 8
    monkeypatch.setattr(pages, "write_page", no_room)
    assert main([*command, "--max_images=2"]) == 1
    assert before - {path.name for path in tmp_path.iterdir()} == {"report.html", "sheet.png"}
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["num_images"] == 2


def test_an_ensemble_of_a_model_with_itself_says_the_same(project, capsys):
    model, photos = project / "run" / "model", str(project / "photos")
    main(["caption", f"--model={model}", photos, "--json"])
    one = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main(["caption", f"--model={model},{model}", photos, "--json"])
    two = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["caption"] for row in one] == [row["caption"] for row in two]
    np.testing.assert_allclose([r["log_prob"] for r in one], [r["log_prob"] for r in two], rtol=1e-4)


def test_a_run_from_images_goes_on_with_its_encoder_and_no_other_wherever_that_lies(project, tmp_path, capsys):
    small = EncoderConfig(depth_multiplier=0.25, final_endpoint="mixed0", image_size=75)
    for name, seed in (("ours", 0), ("others", 1)):
        save_encoder(tmp_path / f"{name}.safetensors", small, random_encoder(small, seed=seed))
    command = ["train", *(option for option in config(project) if not option.startswith("--config.encoder."))]
    command += ["--config.features.dir=", "--config.eval.every=1", f"--workdir={tmp_path / 'run'}"]

    def train(name: str, num_steps: int) -> int:
        weights = f"--config.encoder.weights={tmp_path / name}.safetensors"
        return main([*command, weights, f"--config.train.num_steps={num_steps}"])

    assert train("ours", 1) == 0
    assert train("others", 2) == 1
    assert "expected the encoder that" in capsys.readouterr().err
    (tmp_path / "moved").mkdir()
    (tmp_path / "ours.safetensors").rename(tmp_path / "moved" / "ours.safetensors")
    assert train("moved/ours", 2) == 0


def test_training_from_images_equals_training_from_the_cache(project, tmp_path):
    settings = ["--config.train.num_steps=4", "--config.train.log_every=1", "--config.eval.every=4"]
    for name, features in (("images", ""), ("cache", str(project / "features"))):
        arguments = [*config(project), *settings, f"--config.features.dir={features}", f"--workdir={tmp_path / name}"]
        assert main(["train", *arguments]) == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("images", "cache")]
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        for key in {"train/loss", "val/loss", "val/accuracy"} & set(a):
            assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_fine_tuning_changes_the_encoder_and_freezing_does_not(project, tmp_path):
    from capjax.model_directory import load_model_directory

    settings = ["--config.train.num_steps=2", "--config.features.dir=", "--config.eval.every=2"]
    variables = {}
    for name, change in (("frozen", []), ("tuned", ["--config.encoder.learning_rate_scale=0.1"])):
        assert main(["train", *config(project), *settings, *change, f"--workdir={tmp_path / name}"]) == 0
        variables[name] = load_model_directory(tmp_path / name / "model").variables
    before = load_model_directory(project / "run" / "model").variables
    for part in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, variables["frozen"][part]["encoder"], before[part]["encoder"])
    kernels = [of["params"]["encoder"]["stem"]["conv_1"]["kernel"] for of in (variables["tuned"], before)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "--model=nowhere", "x.jpg"], "expected a model directory"),
        (["caption", "--model={run}", "x.jpg"], "did you mean {run}/model"),
        (["caption", "--model={model}", "{empty}"], "found none"),
        (["caption", "--model={model}", "{photos}", "--beam_size=0"], "beam_size lies in 1..10000"),
        (["caption", "--model={model}", "{photos}", "--must_not_contain=zebra"], "zebra"),
        (["evaluate", "--model={model}", "--split=tset"], "'tset'"),
        (["evaluate", "--model={model}", "--split=val", "--batch_size=0"], "batch_size of at least 1"),
        (["evaluate", "--model={model}", "--split=val", "--max_images=-1"], "max_images of at least 0"),
        (["evaluate", "--model={model}", "--split=val", "--bootstrap_samples=1"], "bootstrap_samples of"),
        (["evaluate", "--model={model}", "--split=val", "--features_dir=gs://x"], "mount the bucket"),
        (["evaluate", "--model={model}", "--split=val", "--images={empty}/none"], "none at --images="),
        (["train", "--config=nowhere.py", "--workdir={empty}"], "nowhere.py"),
        (["train", "--config=scenes", "--workdir={empty}", "--config.train.num_stepz=1"], "train.num_steps"),
        (["features", "--config=scenes", *ENCODER, "--config.dataset.name=senes"], "senes"),
    ],
)
def test_mistakes_are_one_clear_line(project, tmp_path, capsys, arguments, message):
    places = {
        "run": project / "run",
        "model": project / "run" / "model",
        "photos": project / "photos",
        "empty": tmp_path,
    }
    assert main([argument.format(**places) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("capjax: error: ")]
    assert len(lines) == 1
    assert message.format(**places) in lines[0]


def change_version(path):
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "model.json").write_text("{"), "something else"),
        (lambda m: next(m.glob("vocabulary-*.json")).unlink(), "vocabulary"),
        (lambda m: next(m.glob("*.safetensors")).write_bytes(b"short"), "damaged"),
        (lambda m: next(m.glob("*.safetensors")).unlink(), "could not read"),
        (lambda m: change_version(m / "model.json"), "format 1"),
    ],
)  # fmt: skip
def test_damaged_model_directories_are_refused(project, tmp_path, capsys, damage, message):
    model = tmp_path / "model"
    shutil.copytree(project / "run" / "model", model)
    damage(model)
    assert main(["caption", f"--model={model}", str(project / "photos" / "00.png")]) == 1
    error = capsys.readouterr().err
    assert error.count("capjax: error: ") == 1 and message in error
