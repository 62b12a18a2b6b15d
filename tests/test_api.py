"""The five functions of `import capjax` against the commands, which do the same."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import capjax
import capjax.data
from capjax.captioning import generator
from capjax.cli import main
from capjax.config import load_config
from capjax.errors import CapjaxError
from tests.toy_project import config, prepare

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model_0_1"


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A prepared dataset with features, and a model that `train_model` made of it."""
    root = tmp_path_factory.mktemp("api")
    prepare(root)
    options = config(root)
    assert main(["features", *options]) == 0
    recipe = options[0].removeprefix("--config=")
    changes = dict(option.removeprefix("--config.").split("=", 1) for option in options[1:])
    model = capjax.train_model(recipe, root / "run", changes | {"train.num_steps": 60})
    return root, options, model


def test_training_is_what_the_command_does(toys, tmp_path):
    root, options, model = toys
    assert main(["train", *options, "--config.train.num_steps=60", f"--workdir={tmp_path / 'run'}"]) == 0
    other = capjax.load_model(tmp_path / "run" / "model")
    assert model.scores == other.scores
    jax.tree.map(np.testing.assert_array_equal, model.variables, other.variables)
    assert (root / "run" / "curves.png").exists()


def test_words_of_the_search_are_looked_up_before_training_and_come_in_lists(toys, tmp_path):
    _, options, _ = toys
    recipe = options[0].removeprefix("--config=")
    changes = dict(option.removeprefix("--config.").split("=", 1) for option in options[1:])
    changes |= {"train.num_steps": 1}
    with pytest.raises(CapjaxError, match=r"unknown word .*'zebra'"):
        capjax.train_model(recipe, tmp_path / "none", changes | {"search.must_not_contain": ["zebra"]})
    assert not (tmp_path / "none").exists()
    words = {"method": "beam", "must_contain": [["circle", "box"], "a"], "must_not_contain": ["red"]}
    changes |= {f"search.{name}": value for name, value in words.items()}
    search = capjax.train_model(recipe, tmp_path / "run", changes).search
    assert (search.must_contain, search.must_not_contain) == (("circle|box", "a"), ("red",))


def test_a_configuration_is_not_changed_by_training_with_changes(toys, tmp_path):
    _, options, _ = toys
    recipe = options[0].removeprefix("--config=")
    given = load_config(recipe, [option.removeprefix("--config.") for option in options[1:]])
    before = given.to_json()
    model = capjax.train_model(given, tmp_path, {"train.num_steps": 2, "eval.every": 2})
    assert model.scores["step"] == 2
    assert given.to_json() == before
    with pytest.raises(CapjaxError, match=r"train\.num_steps"):
        capjax.train_model(given, tmp_path, {"train.num_steps": 0})


def test_a_second_call_compiles_nothing(monkeypatch):
    built, build = [], generator.search_function

    def counted(*args):
        built.append(args)
        return build(*args)

    monkeypatch.setattr(generator, "search_function", counted)
    model, photos = capjax.load_model(GOLDEN / "model"), sorted((GOLDEN / "photos").iterdir())
    captions = capjax.caption_photos(model, photos, batch_size=8)
    assert len(built) == 1
    assert capjax.caption_photos(model, photos[1], batch_size=8) == captions[1:2]
    assert capjax.caption_photos([model], photos[2:4], batch_size=8) == captions[2:4]
    assert len(built) == 1
    again = capjax.load_model(GOLDEN / "model")  # might hold something else by now
    assert capjax.caption_photos(again, photos[0], batch_size=8) == captions[:1]
    capjax.caption_photos(model, photos[0], batch_size=8, method="beam")
    assert len(built) == 3


def test_captions_are_those_of_the_command(capsys):
    model = capjax.load_model(str(GOLDEN / "model"))
    assert main(["caption", f"--model={GOLDEN / 'model'}", "--json", "--beam_size=3", str(GOLDEN / "photos")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = capjax.caption_photos(model, GOLDEN / "photos", beam_size=3)
    assert [(c.text, c.log_prob) for c in found] == [(row["caption"], row["log_prob"]) for row in rows]
    files = [row["file"] for row in rows]
    assert capjax.caption_photos(model, files, beam_size=3) == found
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    assert [c.text for c in capjax.caption_photos([model, model], pixels, beam_size=3)] == [c.text for c in found]
    opened = [Image.open(file) for file in files]
    assert [c.text for c in capjax.caption_photos(model, opened, beam_size=3)] == [c.text for c in found]
    grey = capjax.caption_photos(model, opened[0].convert("LA"), beam_size=3)
    assert grey == capjax.caption_photos(model, opened[0].convert("L").convert("RGB"), beam_size=3)


def test_what_is_wrong_is_said(tmp_path, wrong_types_allowed):
    model = capjax.load_model(GOLDEN / "model")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CapjaxError, match=r"broken\.png: "):
        capjax.caption_photos(model, [*(GOLDEN / "photos").iterdir(), tmp_path / "broken.png"])
    assert capjax.caption_photos(model, []) == []
    with pytest.raises(CapjaxError, match=r"expected pixels uint8 \[H, W, 3\] .*, got float64 \[9, 9, 3\]"):
        capjax.caption_photos(model, np.zeros((9, 9, 3)))
    with pytest.raises(CapjaxError, match="beam_size"):
        capjax.caption_photos(model, GOLDEN / "photos", beam_size=0)
    with pytest.raises(CapjaxError, match="glory"):
        capjax.caption_photos(model, GOLDEN / "photos", glory=1)
    with pytest.raises(CapjaxError, match="2 are in one of them alone: a"):
        capjax.score_captions({"a": ["x"]}, {"b": "x"})
    for texts in ("a dog", ["a dog", None], []):
        with pytest.raises(CapjaxError, match="a list of sentences as references of 'a', got"):
            capjax.score_captions({"a": texts}, {"a": "a dog"})
    for wrong in ([], "demo/run/model", None):
        with pytest.raises(CapjaxError, match="expected a model that load_model"):
            capjax.caption_photos(wrong, GOLDEN / "photos")
    for shape in ((0, 60, 3), (1, 1, 3), (60, 60), (60, 60, 4), (2, 60, 60, 3)):
        with pytest.raises(CapjaxError, match=re.escape(f"got uint8 {list(shape)}; ")):
            capjax.caption_photos(model, np.zeros(shape, np.uint8))
    for photos in (b"x", [b"x"], None, 3, [3], [None]):
        with pytest.raises(CapjaxError, match="expected photos as names of files, PIL images or pixels"):
            capjax.caption_photos(model, photos)
    with pytest.raises(CapjaxError, match="expected a batch_size of at least 1, got '4'"):
        capjax.caption_photos(model, GOLDEN / "photos", batch_size="4")
    with pytest.raises(CapjaxError, match="expected the path of a model directory, got NoneType"):
        capjax.load_model(None)
    for recipe, changes in ((None, None), ("scenes", ["train.num_steps=3"])):
        with pytest.raises(CapjaxError, match="expected a recipe, a file or what its get_config"):
            capjax.train_model(recipe, tmp_path, changes)
    with pytest.raises(CapjaxError, match="expected references by image"):
        capjax.score_captions([["a dog"]], ["a dog"])
    for text in (["a dog"], None):
        with pytest.raises(CapjaxError, match="expected a sentence as the caption of 'a'"):
            capjax.score_captions({"a": ["a dog"]}, {"a": text})
    with pytest.raises(CapjaxError, match=r"expected metrics out of .* got bleu"):
        capjax.score_captions({"a": ["a dog"]}, {"a": "a dog"}, metrics=["bleu"])
    with pytest.raises(CapjaxError, match=r"from 4 to .*, got -1"):
        capjax.caption_photos(model, GOLDEN / "photos", beam_size=3, must_contain=[-1])
    with pytest.raises(CapjaxError, match="max_images of at least 0, got -1"):
        capjax.evaluate_model(model, "val", tmp_path, max_images=-1)
    with pytest.raises(AttributeError, match="no attribute 'captoin'"):
        _ = capjax.captoin


def test_the_home_directory_may_be_short(toys, tmp_path, monkeypatch, capsys):
    """As `~`, which no shell has made longer where a path is an argument, or stands behind an equals sign."""
    _, options, model = toys
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(pathlib.Path(options[0].removeprefix("--config=").split(":")[0]).read_text())
    changes = dict(option.removeprefix("--config.").split("=", 1) for option in options[1:])
    trained = capjax.train_model("~/recipe.py:toys", "~/run", changes | {"train.num_steps": 1})
    assert pathlib.Path(trained.path) == tmp_path / "run" / "model"
    capjax.evaluate_model(model, "val", "~/evaluation", metrics="ROUGE-L", max_images=2)
    assert (tmp_path / "evaluation" / "metrics.json").exists()
    (tmp_path / "photos").symlink_to(GOLDEN / "photos")
    assert capjax.caption_photos(model, "~/photos") == capjax.caption_photos(model, GOLDEN / "photos")
    (tmp_path / "train.json").write_text('{"images": 3}')
    names = [f"--references={tmp_path}/train.json", f"--results={tmp_path}/train.json", "--train_captions=~/train.json"]
    assert main(["score", *names]) == 1
    assert not (tmp_path / "~").exists() and "~" not in capsys.readouterr().err


def test_a_model_may_be_named_from_inside(toys, tmp_path, monkeypatch, capsys):
    """As `.`, whose evaluation lies beside the directory all the same, as does the log of the training."""
    root, _, _ = toys
    shutil.copytree(root / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" / "model")
    assert main(["evaluate", "--model=.", "--split=train", "--metrics=ROUGE-L", "--max_images=2"]) == 0
    assert not pathlib.Path("evaluation-train").exists()
    assert "Loss (nats per word)" in (tmp_path / "run" / "evaluation-train" / "report.html").read_text()
    capsys.readouterr()
    assert main(["model", "card", "."]) == 0
    assert "with 1 evaluation(s)" in capsys.readouterr().out
    (tmp_path / "best").symlink_to(tmp_path / "run" / "model")  # as is that beside what a link leads to
    assert main(["model", "card", str(tmp_path / "best")]) == 0
    assert "with 1 evaluation(s)" in capsys.readouterr().out


def test_a_model_that_diverged_is_evaluated_all_the_same(toys, tmp_path, capsys):
    """Its validation scores are no numbers, which JSON lacks."""
    _, _, model = toys
    shutil.copytree(model.path, tmp_path / "run" / "model")
    header = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    header["scores"]["val/loss"], header["scores"]["val/perplexity"] = float("nan"), float("inf")
    (tmp_path / "run" / "model" / "model.json").write_text(json.dumps(header))
    evaluate = ["evaluate", f"--model={tmp_path / 'run' / 'model'}", "--split=val", "--metrics=ROUGE-L"]
    assert main([*evaluate, f"--ledger={tmp_path / 'ledger.jsonl'}"]) == 0

    def proper(text):
        return json.loads(text, parse_constant=pytest.fail)

    report = proper((tmp_path / "run" / "evaluation-val" / "metrics.json").read_text())
    (row,) = map(proper, (tmp_path / "ledger.jsonl").read_text().splitlines())
    for scores in (report["models"][0]["scores"], row["validation"]):
        assert scores["val/loss"] is None and scores["step"] == header["scores"]["step"]
    capsys.readouterr()
    assert main(["model", "card", str(tmp_path / "run" / "model")]) == 0
    assert "with 1 evaluation(s)" in capsys.readouterr().out


def test_evaluation_refuses_what_it_can_before_it_decodes_and_keeps_the_captions(toys, tmp_path, monkeypatch, capsys):
    _, _, model = toys
    evaluate = ["evaluate", f"--model={model.path}", "--split=val", "--max_images=2", f"--out={tmp_path / 'out'}"]
    (tmp_path / "file").touch()
    for ledger in (tmp_path / "file" / "x.jsonl", tmp_path):
        assert main([*evaluate, f"--ledger={ledger}"]) == 1
        assert f"expected to append to the ledger {ledger}, could not" in capsys.readouterr().err
        assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.setenv("PATH", "")  # without Java
    assert main([*evaluate, "--metrics=SPICE"]) == 1
    assert re.search(r"can be computed: SPICE needs .*captions are in .*results\.json", capsys.readouterr().err)
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 2


def test_evaluations_of_other_folders_are_compared_with_a_warning(toys, tmp_path, capsys):
    """Two folders with the same names have the same ids."""
    root, _, model = toys
    shutil.copytree(root / "data" / "folder" / "toys", tmp_path / "folder" / "others")
    evaluate = ["evaluate", f"--model={model.path}", "--split=val", "--metrics=ROUGE-L", "--features_dir="]
    others = ["--dataset=folder/others", f"--data_dir={tmp_path}", f"--out={tmp_path / 'others'}"]
    assert main([*evaluate, *others]) == 0
    capsys.readouterr()
    for rival, warned in (("others", True), ("toys", False)):
        assert main([*evaluate, f"--compare={tmp_path / rival}", f"--out={tmp_path / f'{rival}_again'}"]) == 0
        assert ("is an evaluation of folder/others, this one of folder/toys" in capsys.readouterr().err) == warned
        (tmp_path / f"{rival}_again").rename(tmp_path / "toys") if warned else None


def test_evaluation_is_what_the_command_does(toys):
    root, _, model = toys
    report = capjax.evaluate_model(model, "val", root / "by_function", beam_size=2)
    assert main(["evaluate", f"--model={model.path}", "--split=val", "--beam_size=2", f"--out={root / 'by'}"]) == 0
    stored = json.loads((root / "by" / "metrics.json").read_text())
    assert report["CIDEr-D"] == stored["CIDEr-D"]
    assert report["intervals"]["CIDEr-D"] == pytest.approx(stored["intervals"]["CIDEr-D"])
    assert stored["command"] == f"capjax evaluate --model={model.path} --split=val --beam_size=2 --out={root / 'by'}"
    assert report["command"].startswith(f"capjax.evaluate_model(capjax.load_model({model.path!r}), 'val', max_images=0")
    by_function, by_command = ((root / name / "report.html").read_text() for name in ("by_function", "by"))
    assert "Training</h2>" in by_command and "Training</h2>" in by_function


def test_words_that_a_search_left_unknown_are_counted(toys, tmp_path):
    """No text shows them: drawn among all words alike, hardly a caption of twenty is without one."""
    _, _, model = toys
    anyhow = {"method": "sample", "temperature": 1000.0, "min_length": 20, "max_length": 20}
    for allowed in (False, True):
        report = capjax.evaluate_model(model, "val", tmp_path, metrics=["CIDEr-D"], allow_unk=allowed, **anyhow)
        rows = [json.loads(line) for line in (tmp_path / "per_image.jsonl").read_text().splitlines()]
        share = sum("unknown_word" in row["ailments"] for row in rows) / len(rows)
        assert report["health"]["unknown_word"] == share
        assert (share > 0.5) == allowed and (share == 0) != allowed
        assert not any("<unk>" in row["caption"] for row in rows)


def test_the_page_of_an_ensemble_says_that_it_is_one_and_whose_words_are_explained(toys, tmp_path):
    _, _, model = toys
    ledger = tmp_path / "ledger.jsonl"
    command = ["evaluate", f"--model={model.path},{model.path}", "--split=val", f"--ledger={ledger}"]
    assert main([*command, "--explain", "--metrics=CIDEr-D", f"--out={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"Decoded with greedy, .*2 models that vote\.", page)
    assert "Where words are explained, it is by the first of the 2 models." in page
    assert json.loads(ledger.read_text())["recipe"] == model.config.recipe


def test_evaluation_leaves_the_configuration_of_a_model_as_it_was(toys, tmp_path):
    _, _, model = toys
    moved = model.config.copy_and_resolve_references()
    moved.features.dir = str(tmp_path / "unmounted")  # it looks at the images then
    before = moved.to_dict()
    capjax.evaluate_model(replace(model, config=moved), "val", tmp_path / "evaluation", metrics=["CIDEr-D"])
    assert moved.to_dict() == before


def test_two_evaluations_are_compared_as_results_files_are(toys, tmp_path, capsys):
    root, _, model = toys
    evaluation = ["evaluate", f"--model={model.path}", "--split=val", "--metrics=CIDEr-D"]
    assert main([*evaluation, "--max_length=2", f"--out={root / 'short'}"]) == 0
    assert main([*evaluation, f"--out={root / 'long'}", f"--compare={root / 'short'}"]) == 0
    found = json.loads((root / "long" / "metrics.json").read_text())["comparison"]
    assert found["with"] == f"{root.name}/short"
    dataset = capjax.data.load("folder/toys", root / "data")
    records = dataset.records("val")
    annotations = [{"image_id": r.image_id, "caption": text, "id": 0} for r in records for text in r.captions]
    images = [{"id": r.image_id, "file_name": r.file_name} for r in records]
    references = tmp_path / "references.json"
    references.write_text(json.dumps({"images": images, "annotations": annotations}))
    results = [f"--results={root / name / 'results.json'}" for name in ("short", "long")]
    scoring = ["score", f"--references={references}", *results, "--metrics=CIDEr-D"]
    assert main([*scoring, f"--out={tmp_path / 'scores'}"]) == 0
    (expected,) = json.loads((tmp_path / "scores" / "comparison.json").read_text())["compared"].values()
    for name, of_metric in found["metrics"]["CIDEr-D"].items():
        assert of_metric == pytest.approx(expected["CIDEr-D"][name])
    assert found["metrics"]["CIDEr-D"]["difference"] > 0
    kept = (root / "short" / "results.json").read_bytes()
    assert main([*evaluation, f"--out={root / 'short'}", f"--compare={root / 'long' / '..' / 'short'}"]) == 1
    assert "expected another folder to write than" in capsys.readouterr().err
    assert (root / "short" / "results.json").read_bytes() == kept
    untested = [f"--out={root / 'untested'}", f"--compare={root / 'short'}", "--bootstrap_samples=0"]
    assert main([*evaluation, *untested]) == 0
    assert json.loads((root / "untested" / "metrics.json").read_text())["comparison"]["metrics"] == {}
    capsys.readouterr()
    assert main([*evaluation, f"--compare={tmp_path}"]) == 1
    assert "results.json" in capsys.readouterr().err
    (root / "short" / "results.json").write_text('[{"image_id": 999, "caption": "a box"}]')
    assert main([*evaluation, f"--compare={root / 'short'}"]) == 1
    assert re.search(r"an evaluation of the same images in .*it lacks 8 of 8", capsys.readouterr().err)


def test_scores_are_those_of_the_command(tmp_path):
    texts = {"a.jpg": ["a red box", "one red box"], "b.jpg": ["a blue circle", "the circle is blue"]}
    captions = {"b.jpg": "a blue box", "a.jpg": "a red box"}
    number = {name: i for i, name in enumerate(texts)}
    annotations = [
        {"id": 10 * number[name] + i, "image_id": number[name], "caption": text}
        for name, of_image in texts.items()
        for i, text in enumerate(of_image)
    ]
    images = [{"id": i, "file_name": name} for name, i in number.items()]
    (tmp_path / "references.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    results = [{"image_id": number[name], "caption": text} for name, text in captions.items()]
    (tmp_path / "results.json").write_text(json.dumps(results))
    files = [f"--references={tmp_path / 'references.json'}", f"--results={tmp_path / 'results.json'}"]
    assert main(["score", *files, f"--out={tmp_path / 'scores'}"]) == 0
    stored = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    report = capjax.score_captions(texts, captions)
    for name in ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D"):
        assert report[name] == stored[name]
    assert report["per_image"]["ROUGE-L"]["a.jpg"] == pytest.approx(1.0)
    assert report["per_image"]["ROUGE-L"]["b.jpg"] < 1


def test_importing_it_imports_no_jax():
    code = "import sys, capjax; assert 'jax' not in sys.modules; assert 'load_model' in dir(capjax)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_model_is_shown_and_its_card_has_its_evaluations(toys, tmp_path, capsys):
    root, _, model = toys
    card = (root / "run" / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "capjax"
    assert "model-index" not in head
    assert "It was not evaluated further" in card
    assert str(root) not in card, "no place of this machine"

    evaluation = ["evaluate", "--split=val", "--metrics=CIDEr-D"]
    assert main([*evaluation, f"--model={model.path}"]) == 0
    assert main([*evaluation, f"--model={GOLDEN / 'model'}", *_other(root)]) == 0
    (root / "run" / "evaluation-ended").mkdir()
    capsys.readouterr()
    assert main(["model", "card", model.path]) == 0
    told = capsys.readouterr().out
    assert "with 1 evaluation(s)" in told and re.search(r"left out .*evaluation-ended: it has no metrics\.json", told)
    card = (root / "run" / "model" / "README.md").read_text()
    (result,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    stored = json.loads((root / "run" / "evaluation-val" / "metrics.json").read_text())
    (cider,) = [metric["value"] for metric in result["metrics"] if metric["name"] == "CIDEr-D"]
    assert cider == pytest.approx(100 * stored["CIDEr-D"], abs=0.01)
    low, high = stored["intervals"]["CIDEr-D"]
    assert f"| CIDEr-D | {100 * stored['CIDEr-D']:.1f} | {100 * low:.1f} to {100 * high:.1f} |" in card

    assert main(["model", "card", model.path, f"--evaluation={root / 'other'}"]) == 1
    assert "is one of another model" in capsys.readouterr().err
    assert main(["model", "card", model.path, f"--evaluation={tmp_path}"]) == 1
    assert "expected what `capjax evaluate` writes" in capsys.readouterr().err
    assert main(["model", "show", model.path]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^decoder +init_inject$", shown, re.MULTILINE)
    assert re.search(r"^parameters +[\d,]+$", shown, re.MULTILINE)
    assert "decoder/lstm/kernel" in shown


def _other(root):
    """Options that let another model be evaluated on the toys."""
    return ["--dataset=folder/toys", f"--data_dir={root / 'data'}", "--features_dir=", f"--out={root / 'other'}"]
