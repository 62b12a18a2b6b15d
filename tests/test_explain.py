"""`capjax explain`: the same captions as `capjax caption`, trees that tell what the beams did, sheets and pages."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from capjax import explain as explaining
from capjax.attribution.explainer import Explainer, WatchedSearch, branches_of
from capjax.captioning.loaded_model import load_model
from capjax.captioning.photos import PhotoCaptioner, read_photos
from capjax.cli import main
from capjax.config import changes, load_config
from capjax.decoding.beam_search import Candidates
from capjax.errors import CapjaxError
from capjax.explain import names_of
from capjax.report.explanation import Branch
from capjax.report.ledger import config_sha256, read_ledger
from capjax.types import Features
from tests.random_models import model_of_features, small_model
from tests.toy_project import changed, config, draw, prepare


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, (colour, shape) in enumerate([("red", "ellipse"), ("blue", "rectangle"), ("green", "ellipse")]):
        draw(folder / f"{i}.png", colour, shape)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "search",
    [
        {"method": "greedy"},
        {"beam_size": 3, "num_captions": 3},
        {"beam_size": 4, "length_penalty": 1.0},
        {"beam_size": 4, "num_groups": 2, "method": "diverse_beam"},
        {"beam_size": 2, "must_contain": "w5"},
        {"temperature": 0.5, "seed": 3},
        {"temperature": 1.0, "seed": 1, "allow_unk": True},
    ],
    ids=lambda search: "-".join(map(str, search.values())),
)
def test_what_is_explained_is_what_is_said(tmp_path, photos, search):
    model = load_model(str(small_model(tmp_path, "att2in")))
    settings = model.search.updated({"max_length": 8, **search})
    expected = list(PhotoCaptioner([model])(photos, settings))
    watched, explainer = WatchedSearch(model, settings), Explainer(model, max_words=8)
    read = read_photos(photos, model.preprocessing)
    for image, image_id, by_batch in zip(read.images, read.ids, expected, strict=True):
        caption, branches = watched(image, image_id)
        assert caption.text == by_batch.text
        assert [text for text, _ in caption.alternatives] == [text for text, _ in by_batch.alternatives]
        assert caption.log_prob == pytest.approx(by_batch.log_prob, abs=1e-4)
        of_words = [word.probability for word in explainer(image, caption).words]
        assert np.log(of_words).sum() == pytest.approx(caption.log_prob, abs=2e-3)
        if settings.method in ("greedy", "sample"):
            assert branches == []
            continue
        # Each beginning is as likely as the model says of it, and a beam is never wider than it may be.
        scores = {path_of(branches, i): branch.log_prob for i, branch in enumerate(branches)}
        at_length = np.bincount([len(path) for path in scores], minlength=9)
        assert 0 < at_length.max() <= settings.beam_size * (2 if settings.must_contain else 1)
        for path, score in list(scores.items())[:40]:
            words = explainer(image, " ".join(word for word in path if word != "(end)")).words
            assert sum(np.log(word.probability) for word in words[: len(path)]) == pytest.approx(score, abs=2e-3)
        chosen = [branch.text for branch in branches if branch.chosen]
        assert " ".join(word for word in chosen if word != "(end)") == caption.text


def path_of(branches, i):
    path = []
    while i >= 0:
        path.append(branches[i].text)
        i = branches[i].parent
    return tuple(path[::-1])


def test_a_tree_by_hand():
    """Two beams: `a` and `b` begin; `a c` and `a d` push `b` out; `a c` ends, `a d c` lives on to the last step."""
    words = ["<pad>", "<unk>", "<start>", "<end>", "a", "b", "c", "d"]
    steps = [
        step([0, 0], [4, 5], [-0.5, -1.0]),
        step([0, 0], [6, 7], [-0.7, -0.9]),
        step([0, 1], [3, 6], [-0.8, -1.9]),
        step([0, 1], [5, 5], [-np.inf, -2.5]),  # the beam that ended goes nowhere
    ]
    found = branches_of(steps, np.asarray([4, 6, 3, 0]), words)
    assert [branch._replace(log_prob=round(branch.log_prob, 4)) for branch in found] == [
        Branch("a", -1, -0.5, True),
        Branch("b", -1, -1.0),
        Branch("c", 0, -0.7, True),
        Branch("d", 0, -0.9),
        Branch("(end)", 2, -0.8, True, is_whole=True),
        Branch("c", 3, -1.9),
        Branch("b", 5, -2.5, is_whole=True),
    ]
    assert branches_of([], np.asarray([4, 3]), words) == []


def step(parents, tokens, scores):
    return Candidates(np.asarray([parents]), np.asarray([tokens]), np.asarray([scores], np.float32))


def test_a_picture_and_a_page_for_each_photo(tmp_path, photos, capsys):
    model = small_model(tmp_path / "model", "up_down")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "other").mkdir()
    shutil.copy(photos[0], tmp_path / "other")
    options = [f"--model={model}", "--beam_size=3", "--num_captions=2", "--max_length=8"]
    given = [*map(str, photos), str(tmp_path / "broken.jpg"), str(tmp_path / "other" / "0.png")]
    assert main(["explain", *options, f"--out={tmp_path / 'out'}", *given]) == 1
    printed = capsys.readouterr()
    assert re.search(r"broken\.jpg: expected an? ", printed.err) and "Traceback" not in printed.err
    assert main(["caption", *options, *map(str, photos)]) == 0
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith(" "):
            assert line in printed.out.splitlines()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 8 and {"1.html", "1.png", "2.html", "2.png"} < set(names)
    assert sum(bool(re.fullmatch(r"0-[0-9a-f]{8}\.png", name)) for name in names) == 2
    with Image.open(tmp_path / "out" / "1.png") as sheet:
        assert sheet.width == 1260 and sheet.height > 400
    page = (tmp_path / "out" / "1.html").read_text()
    assert "<svg" in page and "1.png" in page and "http" not in page.replace("http-equiv", "").replace("http://www", "")
    found = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    assert found["heat_method"] == "attention" and np.shape(found["words"][0]["heat"]) == (7, 7)


def test_pictures_of_others_are_not_written_over_and_its_own_are_not_explained(tmp_path, photos, capsys, monkeypatch):
    model = small_model(tmp_path / "model", "init_inject")
    (tmp_path / "photos").mkdir()
    shutil.copy(photos[0], tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    Image.open("0.png").convert("RGB").save("0.jpg")
    before = {path.name: path.read_bytes() for path in pathlib.Path().iterdir()}
    explain = ["explain", f"--model={model}", "--caption=w3"]
    pathlib.Path("0.html").write_text("<title>an album</title>")  # anybody's page
    before["0.html"] = pathlib.Path("0.html").read_bytes()
    for lacking in (None, "0.html", "0.png"):
        if lacking:
            pathlib.Path(lacking).rename(f"../{lacking}")
        for out, photo in ((".", "0.png"), ("../photos", "0.png"), (".", "0.jpg")):
            if photo != lacking:
                assert main([*explain, f"--out={out}", photo]) == 1
                there = "0.html" if lacking == "0.png" else "0.png"
                assert f"{there} is none that this wrote" in capsys.readouterr().err
                now = {path.name: path.read_bytes() for path in pathlib.Path().iterdir()}
                assert now == {name: content for name, content in before.items() if name != lacking}
        if lacking:
            pathlib.Path(f"../{lacking}").rename(lacking)
    pathlib.Path("0.png").unlink()
    pathlib.Path("0.html").unlink()
    shutil.copy(photos[1], tmp_path / "photos" / "other.png")
    for out, found in (("explained", {"0", "other"}), (".", {"0"})):
        pathlib.Path("other.png").unlink(missing_ok=out == ".")
        if out == "explained":
            shutil.copy(photos[1], "other.png")
        for told in ("", "left out what was written before"):
            assert main([*explain, f"--out={out}", "."]) == 0
            assert told in capsys.readouterr().err
            written = {path.stem for path in pathlib.Path(out).glob("*.html")}
            assert written == {path.stem for path in pathlib.Path(out).glob("*.png")} == found
        if out == "explained":  # whatever folder is written now
            assert main([*explain, "--out=../second", "."]) == 0
            assert "left out what was written before: 2 picture(s)" in capsys.readouterr().err
            assert {path.stem for path in pathlib.Path("../second").glob("*.png")} == found
        shutil.rmtree("explained", ignore_errors=True)

    # A run that was cut off between the two files goes on.
    def no_room(*_):
        raise CapjaxError("no room")

    for name in ("0.png", "0.html"):
        pathlib.Path(name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(explaining, "write_explanation_sheet", no_room)
        assert main([*explain, "--out=.", "0.jpg"]) == 1
    assert main([*explain, "--out=.", "0.jpg"]) == 0 and pathlib.Path("0.png").exists()
    capsys.readouterr()
    # Named one by one, they are explained like any other.
    assert main([*explain, "--out=../again", "0.png"]) == 0
    pathlib.Path("0.jpg").unlink()
    assert main([*explain, "--out=.", "."]) == 1
    assert "found only what was written before" in capsys.readouterr().err


def test_a_caption_that_is_given(tmp_path, photos, capsys):
    model = small_model(tmp_path / "model", "init_inject")
    options = [f"--model={model}", f"--out={tmp_path / 'out'}", "--caption=W3 w4!", "--heat=integrated_gradients"]
    assert main(["explain", *options, str(photos[0])]) == 0
    printed = capsys.readouterr()
    assert f"{photos[0]}: w3 w4" in printed.out and "knows no" not in printed.err
    page = (tmp_path / "out" / "0.html").read_text()
    assert "the caption was given" in page and "integrated gradients" in page and "The beams" not in page


def test_words_of_a_given_caption_that_the_model_has_not_are_told(tmp_path, photos, capsys):
    model = small_model(tmp_path / "model", "up_down")
    assert main(["explain", f"--model={model}", f"--out={tmp_path}", "--caption=a w3 dog dog", str(photos[0])]) == 0
    assert "the model knows no 'a', 'dog': read as unknown words" in capsys.readouterr().err


def test_a_caption_longer_than_the_decoder_was_built_for_is_refused(tmp_path, photos, capsys):
    model = small_model(tmp_path / "model", "transformer")
    longest = load_model(str(model)).captioner.decoder.max_length
    for number, status in ((longest - 1, 0), (longest, 1)):
        caption = f"--caption={' '.join(['w3'] * number)}"
        assert main(["explain", f"--model={model}", f"--out={tmp_path / 'out'}", caption, str(photos[0])]) == status
    assert f"expected a caption of at most {longest - 1} words" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["transformer", "init_inject"])
def test_a_caption_that_the_search_cut_off_is_explained_to_its_last_word(tmp_path, photos, name):
    """It has no end, and as many words as the decoder was built for."""
    model = load_model(str(small_model(tmp_path, name)))
    longest = model.captioner.max_length or 5
    settings = model.search.updated({"method": "greedy", "max_length": longest, "min_length": longest})
    read = read_photos(photos[:1], model.preprocessing)
    caption, _ = WatchedSearch(model, settings)(read.images[0], read.ids[0])
    assert len(caption.text.split()) == len(caption.tokens) == longest
    words = Explainer(model, max_words=longest)(read.images[0], caption).words
    assert [word.text for word in words] == caption.text.split()
    assert np.log([word.probability for word in words]).sum() == pytest.approx(caption.log_prob, abs=1e-3)


def test_unknown_words_of_a_caption_are_explained_where_they_stand(tmp_path, photos):
    model = load_model(str(small_model(tmp_path, "att2in")))
    settings = model.search.updated({"temperature": 1.5, "allow_unk": True, "max_length": 12, "min_length": 12})
    watched, explainer = WatchedSearch(model, settings), Explainer(model, max_words=12)
    (image, *_), _, _ = read_photos(photos[:1], model.preprocessing)
    captions = (watched(image, image_id)[0] for image_id in range(200))
    caption = next(caption for caption in captions if 1 in caption.tokens[:-1])
    words = explainer(image, caption).words
    assert [word.text for word in words if word.text != "<unk>"] == caption.text.split()
    assert np.log([word.probability for word in words]).sum() == pytest.approx(caption.log_prob, abs=2e-3)


def test_a_caption_longer_than_usual_is_explained_alike(tmp_path):
    model = load_model(str(small_model(tmp_path, "att2in")))
    size = model.variables["params"]["decoder"]["grid_embedding"]["kernel"].shape[0]
    grid = np.random.default_rng(0).normal(size=(9, size)).astype(np.float32)
    features = Features(grid.mean(axis=0), grid)
    short, long = (Explainer(model, max_words=number)(features, "w3 w10 w7") for number in (2, 20))
    assert [word.text for word in short.words] == ["w3", "w10", "w7", "(end)"]
    for a, b in zip(short.words, long.words, strict=True):
        assert (a.text, a.probability) == (b.text, pytest.approx(b.probability, rel=1e-4))
    np.testing.assert_allclose(short.heat, long.heat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heat=attention"], "expected a model that attends to a grid, InitInjectDecoder looks at images once"),
        (["--beam_size=0"], "beam_size lies in 1"),
        (["--must_contain=unheard"], "unknown word"),
        (["--caption=!"], "expected --caption to have words, got '!'"),
        (["--caption=w3", "--beam_size=3"], "expected no --beam_size beside --caption"),
    ],
)
def test_what_cannot_be_explained_is_one_line(tmp_path, photos, capsys, options, message):
    model = small_model(tmp_path / "model", "init_inject")
    assert main(["explain", f"--model={model}", f"--out={tmp_path / 'out'}", *options, str(photos[0])]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_model_of_imported_features_has_nothing_to_look_at(tmp_path, photos, capsys):
    model = model_of_features(tmp_path / "model")
    assert main(["explain", f"--model={model}", f"--out={tmp_path / 'out'}", str(photos[0])]) == 1
    assert "has no encoder to look at photos with" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_it_at_once(tmp_path, photos, capsys):
    model = small_model(tmp_path / "model", "init_inject")
    (tmp_path / "file").write_text("no folder")
    assert main(["explain", f"--model={model}", f"--out={tmp_path / 'file' / 'x'}", *map(str, photos)]) == 1
    captured = capsys.readouterr()
    assert "wrote" not in captured.out and captured.err.count("cannot write") == 1


def test_names_of_photos_do_not_overwrite_each_other(tmp_path):
    files = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.jpg", tmp_path / "a" / "y.png"]
    names = names_of(files)
    assert len(set(names)) == 3 and names[2] == "y" and names[0].startswith("x-") and names[1].startswith("x-")
    long = [pathlib.Path("図" * 83 + f"{i}.jpg") for i in range(2)]  # of 255 bytes at most, as file systems want it
    names = names_of(long)
    assert len(set(names)) == 2 and all(name.startswith("図" * 60) and len(name.encode()) < 230 for name in names)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Toys with features on a grid of 7 × 7, and a model that attends to them."""
    root = tmp_path_factory.mktemp("project")
    prepare(root)
    grid = changed({"encoder.grid": True, "decoder.name": "att2in", "decoder.hidden_size": 16})
    grid += changed({"decoder.embed_size": 16, "decoder.attention_size": 8, "train.num_steps": 30, "eval.every": 30})
    assert main(["features", *config(root), *grid]) == 0
    assert main(["train", *config(root), *grid, f"--workdir={root / 'run'}"]) == 0
    return root


def gallery(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text()).group(1))["rows"]


def test_evaluation_explains_what_it_shows_and_keeps_a_ledger(project, tmp_path):
    command = ["evaluate", f"--model={project / 'run' / 'model'}", "--split=val", f"--data_dir={project / 'data'}"]
    command += ["--bootstrap_samples=10", f"--ledger={tmp_path / 'ledger.jsonl'}"]
    assert main([*command, "--explain", f"--out={tmp_path / 'a'}"]) == 0
    assert main([*command, "--beam_size=2", "--metrics=CIDEr-D", f"--out={tmp_path / 'b'}"]) == 0
    with Image.open(tmp_path / "a" / "explained.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 8 * 236
    assert not (tmp_path / "b" / "explained.png").exists()
    for row in gallery(tmp_path / "a" / "report.html"):
        words = row["explained"]["words"]
        assert [word["text"] for word in words] == [*row["caption"].split(), "(end)"]
        told = sum(np.log(max(word["probability"], 5e-4)) for word in words)
        assert told == pytest.approx(row["log_prob"], abs=0.02)
        assert np.shape(words[0]["heat"]) == (7, 7) and row["explained"]["heat_method"] == "attention"
        assert row["explained"]["crop"] == "center", "the square that the encoder saw"
    assert all(row["explained"] is None for row in gallery(tmp_path / "b" / "report.html"))

    first, second = read_ledger(tmp_path / "ledger.jsonl")
    report = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert first["scores"]["CIDEr-D"] == report["CIDEr-D"] and first["intervals"] == report["intervals"]
    assert first["recipe"] == second["recipe"] == "folder:toys"
    assert first["data"] == {"dataset": "folder/toys", "split": "val", "num_images": 8}
    assert first["decoder"]["name"] == "att2in" and first["encoder"] == "random"
    assert second["search"]["beam_size"] == 2 and set(second["scores"]) == {"CIDEr-D"}
    assert first["training_seconds"] > 0 and first["validation"]["step"] == 30
    assert first["hardware"]["cores"] >= 1 and first["commit"]
    assert first["config_sha256"] == second["config_sha256"]
    assert first["init_from"] == "" and first["config"] == second["config"] and first["config"]["train.num_steps"] == 30


def test_evaluation_of_a_decoder_without_attention_covers_its_pictures(project, tmp_path):
    plain = changed({"train.num_steps": 1, "eval.every": 1})
    assert main(["train", *config(project), *plain, f"--workdir={tmp_path}"]) == 0
    command = ["evaluate", f"--model={tmp_path / 'model'}", "--split=val", f"--data_dir={project / 'data'}"]
    assert main([*command, "--explain", "--max_images=2", f"--out={tmp_path / 'evaluation'}"]) == 0
    for row in gallery(tmp_path / "evaluation" / "report.html"):
        assert row["explained"]["heat_method"] == "occlusion"
        assert np.shape(row["explained"]["words"][0]["heat"]) == (8, 8)
    # What the model captioned is explained, whatever photos are shown; of images it is what is shown as well.
    (tmp_path / "others").mkdir()
    for name in ("24.png", "25.png"):
        draw(tmp_path / "others" / name, "yellow", "ellipse")
    from_images = [*command, "--features_dir=", "--explain", "--max_images=2", f"--out={tmp_path / 'images'}"]
    assert main([*from_images, f"--images={tmp_path / 'others'}"]) == 0
    for row in gallery(tmp_path / "images" / "report.html"):
        told = sum(np.log(max(word["probability"], 5e-4)) for word in row["explained"]["words"])
        assert told == pytest.approx(row["log_prob"], abs=0.02)
    # Of a picture that is damaged it tells what its features tell.
    shutil.copytree(project / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "24.png").write_bytes(b"\x89PNG nothing")
    command += [f"--images={tmp_path / 'photos'}", f"--out={tmp_path / 'damaged'}"]
    assert main([*command, "--explain", "--max_images=2"]) == 0
    methods = {row["file"]: row["explained"]["heat_method"] for row in gallery(tmp_path / "damaged" / "report.html")}
    assert methods == {"24.png": "", "25.png": "occlusion"}


def test_the_fingerprint_of_a_configuration_leaves_out_seeds_and_places():
    def fingerprint(*overrides):
        return config_sha256(changes(load_config("flickr8k_att2in", overrides)))

    same = ("seed=3", "features.dir=x", "dataset.data_dir=x", "train.num_workers=2", "recipe=x", "search.method=beam")
    same += ("train.init_from=x", "features.batch_size=1", "train.log_every=7")
    assert fingerprint() == fingerprint(*same)
    assert fingerprint("encoder.weights=a/x.safetensors") == fingerprint("encoder.weights=b/x.safetensors")
    others = ("train.batch_size=9", "decoder.hidden_size=9", "decoder.name=up_down", "search.max_length=9")
    others += ("encoder.weights=y.safetensors",)
    assert len({fingerprint(), *map(fingerprint, others)}) == 6


def test_the_fingerprint_does_not_change_with_fields_that_are_new():
    found = changes(load_config("reference", ["train.ema_decay=0.9", "decoder.hidden_size=7"]))
    told = ("recipe", "decoder.name", "decoder.hidden_size", "features.dir", "train.ema_decay")
    assert found.keys() == set(told), "what is at its default is not told"


def test_a_damaged_ledger_is_one_clear_error(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"recipe": "a"}\n{"recipe": \n')
    with pytest.raises(CapjaxError, match="line 2"):
        read_ledger(tmp_path / "ledger.jsonl")
