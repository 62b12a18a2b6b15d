"""Models restored from their directories: those of earlier versions too, whole ones only, compiled once."""

import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.numpy

from capjax import assembly, caption, evaluate
from capjax.attribution.explainer import WatchedSearch
from capjax.captioning.generator import Caption, Generator
from capjax.captioning.loaded_model import load_ensemble, load_model
from capjax.captioning.photos import find_photos, photo_batch, read_photos
from capjax.cli import main
from capjax.config import load_config, to_dict
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.export_model import export_program
from capjax.model_directory import ModelDirectory, save_model
from capjax.models import DECODERS, Captioner
from capjax.sharding import make_mesh, replicate
from capjax.standalone import exported_captioner
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.types import Features
from tests.models.test_decoders import images, small

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "model_0_1"


@pytest.fixture
def golden(tmp_path):
    """A copy of the model directory that capjax 0.1 wrote."""
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    return tmp_path / "model"


def test_a_search_that_came_to_nothing_is_json_all_the_same(capsys):
    caption._print(pathlib.Path("a.jpg"), Caption(0, "", -math.inf), True)
    exported_captioner._print("a.jpg", [exported_captioner.ExportedCaption("", -math.inf)], True)
    here, there = (json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines())
    assert here == there == {"file": "a.jpg", "caption": "", "log_prob": None}


def test_json_is_proper_whatever_the_terminal_can_show(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii", errors="backslashreplace"))
    caption._print(pathlib.Path("ünï.png"), Caption(0, "a café", -1.0), True)
    exported_captioner._print("ünï.png", [exported_captioner.ExportedCaption("a café", -1.0)], True)
    here, there = map(json.loads, buffer.getvalue().decode("ascii").splitlines())
    assert here == there == {"file": "ünï.png", "caption": "a café", "log_prob": -1.0}


def test_a_model_of_capjax_0_1_says_what_it_said(capsys, monkeypatch):
    monkeypatch.chdir(GOLDEN)
    assert main(["caption", "--model=model", "--json", "--beam_size=3", "--num_captions=2", "photos"]) == 0
    then = [json.loads(line) for line in (GOLDEN / "captions.jsonl").read_text().splitlines()]
    now = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(now) == 8
    for a, b in zip(now, then, strict=True):
        assert (a["file"], a["caption"]) == (b["file"], b["caption"])
        assert a["log_prob"] == pytest.approx(b["log_prob"], abs=1e-4)
        assert [x["caption"] for x in a["alternatives"]] == [x["caption"] for x in b["alternatives"]]


def test_fields_that_a_stored_configuration_lacks_have_their_defaults(golden):
    header = json.loads((golden / "model.json").read_text())
    assert "dtype" not in header["config"]["encoder"], "the stored one is older than that field"
    assert load_model(str(golden)).config.encoder.dtype == "float32"


def change(path, edit):
    header = json.loads(path.read_text())
    edit(header)
    path.write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h["config"]["train"].update(warp=9), r"train\.warp.*does not know"),
        (lambda h: h["config"]["decoder"].update(name="cnn"), r"decoder\.name"),
        (lambda h: h["config"]["train"].update(batch_size="many"), r"train\.batch_size.*'many'"),
        (lambda h: h["config"].update(train=3), "expected train"),
        (lambda h: h.pop("config"), "'config'"),
        (lambda h: h.pop("weights"), "'weights'"),
        (lambda h: h.pop("weights_sha256"), "'weights_sha256'"),
        (lambda h: h.pop("vocabulary_sha256"), "'vocabulary_sha256'"),
        (lambda h: h.pop("encoder"), "'encoder'"),
        (lambda h: h.update(encoder={"colour": 1}), "colour"),
        (lambda h: h.update(encoder={}), "does not fit the network"),
        (lambda h: h.update(encoder=None), "does not fit the network.*unexpected .*encoder"),
        (lambda h: h["encoder"].pop("depth_multiplier"), "does not fit the network"),
        (lambda h: h["encoder"].update(image_size="x"), "encoder that capjax knows.*'x'"),
        (lambda h: h["encoder"].update(image_size=10**9), "encoder that capjax knows"),
        (lambda h: h["encoder"].update(grid_side="x"), "encoder that capjax knows.*grid_side"),
        (lambda h: h["encoder"].update(grid_side=-1), "encoder that capjax knows.*grid_side"),
        (lambda h: h["config"]["train"].update(dtype=None), r"train\.dtype.*got None"),
        (lambda h: h["config"].update(decoder={"name": "transformer", "num_layers": 10**9}), "num_layers"),
        (lambda h: h.update(vocabulary=""), "expected a capjax vocabulary"),
        (lambda h: h["encoder"].update(convention="theano"), "convention.*'theano'"),
        (lambda h: h["encoder"].update(final_endpoint="mixed99"), "mixed99"),
        (lambda h: h["config"]["decoder"].pop("hidden_size"), "does not fit the network"),
        (lambda h: h["config"].pop("decoder"), "does not fit the network"),
        (lambda h: h["config"]["decoder"].update(name=["x"]), r"decoder\.name.*\['x'\]"),
        (lambda h: h["config"]["decoder"].update(hidden_size=-3), "could not"),
        (lambda h: h["config"]["train"].update(dtype="zzz"), "could not.*zzz"),
        (lambda h: h["config"]["encoder"].update(dtype="zzz"), "could not.*zzz"),
        (lambda h: h.update(weights="a\0b"), "do not trust"),
        (lambda h: h.update(weights="a\nb"), "do not trust"),
        (lambda h: h.update(vocabulary="a\0b"), "do not trust"),
        (lambda h: h.update(weights="../model/" + h["weights"]), "do not trust"),
        (lambda h: h.update(weights=os.path.abspath(h["weights"])), "do not trust"),
        (lambda h: h.update(vocabulary="../../vocabulary.json"), "do not trust"),
    ],
)
def test_model_descriptions_that_cannot_be_used_are_one_clear_line(golden, wrong_types_allowed, edit, message):
    change(golden / "model.json", edit)
    with pytest.raises(CapjaxError, match=message) as error:
        load_model(str(golden))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["params", "params/encoder", "batch_stats", "params/decoder/x/y", ""])
def test_weights_whose_names_make_no_such_tree_are_one_line(golden, name):
    header = json.loads((golden / "model.json").read_text())
    weights = safetensors.numpy.load_file(golden / header["weights"])
    for forged in ({name: np.zeros(3)}, weights | {name: np.zeros(3)}):
        content = safetensors.numpy.save(forged)
        (golden / header["weights"]).write_bytes(content)
        change(golden / "model.json", lambda h: h.update(weights_sha256=hashlib.sha256(content).hexdigest()))  # noqa: B023
        with pytest.raises(CapjaxError) as error:
            load_model(str(golden))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, b"\xff\xfe"])
def test_a_model_description_of_something_else_is_one_line(golden, content):
    (golden / "model.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CapjaxError, match="expected a model description"):
        load_model(str(golden))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_weights_of_a_model_without_an_encoder_are_compared_with_its_decoder(tmp_path, name):
    sizes = {"embed_size": 6, "hidden_size": 8, "attention_size": 4, "image_bottleneck_size": 4, "num_heads": 2}
    config = load_config("reference", ["features.dir=x", f"decoder.name={name}"])
    config.decoder.update({field: size for field, size in sizes.items() if field in config.decoder})
    vocabulary = Vocabulary([*SPECIAL_WORDS, "dog"], "words")
    features = Features(np.zeros((1, 7), np.float32), np.zeros((1, 3, 7), np.float32))
    captioner = assembly.captioner_from(config, len(vocabulary), None)
    shapes = jax.eval_shape(captioner.init, jax.random.key(0), features, np.zeros((1, 1), np.int32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_model(tmp_path, ModelDirectory(to_dict(config), None, vocabulary, variables, {}))
    assert load_model(str(tmp_path)).encoder is None
    change(tmp_path / "model.json", lambda h: h["config"]["decoder"].update(hidden_size=16))
    with pytest.raises(CapjaxError, match="does not fit the network"):
        load_model(str(tmp_path))


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(golden, monkeypatch):
    whole = load_model(str(golden))
    shutil.copytree(golden, golden.parent / "newer")
    newer = golden.parent / "newer" / "model.json"
    change(newer, lambda h: h.update(weights="weights-new.safetensors", scores={"step": 7}))
    original = pathlib.Path.read_bytes

    def replace_first(path):
        monkeypatch.setattr(pathlib.Path, "read_bytes", original)
        path.rename(path.with_name("weights-new.safetensors"))  # as `save_model` removes what the older model had
        newer.replace(golden / "model.json")
        return original(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", replace_first)
    again = load_model(str(golden))
    assert again.scores == {"step": 7} != whole.scores, "the older model was read"
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


def test_a_program_is_compiled_once_for_each_search_and_shape_and_the_last_are_kept(golden):
    traces = []

    class CountingCaptioner(Captioner):
        def start(self, *args):
            traces.append(1)
            return super().start(*args)

    model = load_model(str(golden))
    parts = {name: getattr(model.captioner, name) for name in ("decoder", "encoder")}
    mesh = make_mesh()
    generator = Generator([CountingCaptioner(**parts)], model.vocabulary, mesh, max_programs=2)
    variables = replicate([model.variables], mesh)
    photos = read_photos(find_photos([str(GOLDEN / "photos")]), model.preprocessing)
    batch = {size: photo_batch(photos, size, model.preprocessing) for size in (8, 16)}
    greedy, sample, beam = (
        DecoderSettings.from_dict({"method": m, "max_length": 8}) for m in ("greedy", "sample", "beam")
    )

    def trace(size, settings):
        traces.clear()
        captions = list(generator(variables, [batch[size], batch[size]], settings))
        assert len(captions) == 16
        return len(traces)

    assert trace(8, greedy) == 1
    assert trace(8, greedy) == 0
    assert trace(16, greedy) == 1, "another shape"
    assert trace(8, sample) == 1
    assert trace(8, sample.updated({"seed": 5})) == 0, "the seed is no part of the program"
    assert trace(8, beam) == 1
    assert trace(8, sample) == 0, "two are kept"
    assert trace(8, greedy) == 1, "and not three"


def test_what_only_fills_a_vocabulary_up_is_said_by_no_search(wrong_types_allowed):
    """Nothing shows it, so that a caption would have fewer words than asked for."""
    model = load_model(str(GOLDEN / "model"))
    words = model.vocabulary.words
    filled = Vocabulary([*words[:9], *(f"<unused{i}>" for i in range(len(words) - 9))], model.vocabulary.tokenizer)
    model = replace(model, vocabulary=filled)
    settings = DecoderSettings("sample", temperature=50.0, num_captions=8, max_length=7, min_length=7)
    photos = read_photos(find_photos([str(GOLDEN / "photos")]), model.preprocessing)
    batch = photo_batch(photos, 8, model.preprocessing)
    generator = Generator([model.captioner], filled, make_mesh())
    captions = list(generator([replicate(model.variables, make_mesh())], [batch], settings))
    texts = [text for caption in captions for text in (caption.text, *(text for text, _ in caption.alternatives))]
    explained, _ = WatchedSearch(model, settings)(batch["image"][0], int(batch["image_id"][0]))
    program, weights = export_program(model, settings, ["cpu"])
    tokens, _ = jax.jit(program.call)(weights, batch["image"], batch["image_id"].astype(np.uint32))
    texts += [explained.text, *map(filled.decode, np.asarray(tokens).reshape(-1, 7))]
    assert len(texts) == 2 * 8 * 8 + 1 and {len(text.split()) for text in texts} == {7}


def test_an_ensemble_shares_words_and_eyes(golden):
    shutil.copytree(golden, golden.parent / "other")
    change(golden.parent / "other" / "model.json", lambda h: h["config"]["encoder"].update(crop="none"))
    with pytest.raises(CapjaxError, match="other preprocesses differently"):
        load_ensemble(f"{golden},{golden.parent / 'other'}")
    shutil.copytree(golden, golden.parent / "permuted")
    vocabulary = load_model(str(golden)).vocabulary
    permuted = Vocabulary([*SPECIAL_WORDS, *reversed(vocabulary.words[len(SPECIAL_WORDS) :])], vocabulary.tokenizer)
    permuted.save(golden.parent / "permuted" / "vocabulary.json")
    change(golden.parent / "permuted" / "model.json", lambda h: h.update(vocabulary_sha256=permuted.sha256))
    with pytest.raises(CapjaxError, match=r"one vocabulary for an ensemble, .*permuted has another"):
        load_ensemble(f"{golden},{golden.parent / 'permuted'}")


def test_a_search_longer_than_the_decoder_was_built_for_is_refused():
    decoder = small("transformer", max_length=9)
    generator = Generator([Captioner(decoder)], load_model(str(GOLDEN / "model")).vocabulary, make_mesh())
    features = jax.tree.map(np.asarray, images(8))
    batch = {"features": features, "image_id": np.arange(8), "valid": np.ones(8, bool)}
    with pytest.raises(CapjaxError, match=r"at most 9 words.*got max_length 10"):
        next(generator([{}], [batch], DecoderSettings(max_length=10)))


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_batch_of_no_photos_is_refused(golden, capsys, size):
    assert main(["caption", f"--model={golden}", f"--batch_size={size}", str(GOLDEN / "photos")]) == 1
    assert "batch_size of at least 1" in capsys.readouterr().err


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    shutil.copy(GOLDEN / "photos" / "00.png", tmp_path)
    assert find_photos([str(tmp_path)]) == [tmp_path / "00.png"]


def test_files_that_are_no_photos_do_not_keep_the_others_from_their_captions(golden, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(10**12)
    odd = os.fsencode(folder) + b"/\xff.png"
    for path in (odd, folder / "ok.png"):
        shutil.copy(GOLDEN / "photos" / "00.png", path)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["caption", f"--model={golden}", str(folder), "a\0b.jpg"]) == 1
    said, failed = (stream.buffer.getvalue().decode().splitlines() for stream in (out, err))
    assert [line.split(": ")[0] for line in said] == [f"{folder}/ok.png", f"{folder}/\\udcff.png"]
    assert any("sparse.jpg: expected an image file of at most" in line for line in failed)
    assert any(r"a\x00b.jpg: expected a readable image file" in line for line in failed)


def test_a_photo_for_the_page_that_cannot_be_read_is_left_out(tmp_path):
    shutil.copy(GOLDEN / "photos" / "00.png", tmp_path)
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(10**12)
    assert evaluate._read(tmp_path, "00.png") == (GOLDEN / "photos" / "00.png").read_bytes()
    for name in ("sparse.jpg", "nowhere.jpg", "../00.png"):
        assert evaluate._read(tmp_path, name) is None


def test_buckets_are_refused_in_one_line(capsys):
    assert main(["caption", "--model=gs://bucket/model", "x.jpg"]) == 1
    assert "mount the bucket" in capsys.readouterr().err
