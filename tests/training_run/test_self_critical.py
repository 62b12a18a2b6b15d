"""Reinforcement as a run: where it starts, what it says, that it goes on exactly, what it refuses."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from capjax.captioning.loaded_model import load_model
from capjax.config import decoder_config, load_config
from capjax.errors import CapjaxError
from capjax.inspect_model import overview
from capjax.sharding import make_mesh
from capjax.text.vocabulary import Vocabulary
from capjax.train import train
from capjax.training_run.objectives.packed_references import pack_references
from capjax.training_run.objectives.self_critical import SelfCritical
from capjax.training_run.setup import setup_from
from tests.tiny_runs import (
    finish,
    make_store,
    read_jsonl,
    start_capjax,
    start_processes,
    tiny_config,
    write_config_file,
)

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "self_critical.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "store"
    make_store(path, num_images=120, num_val_images=120)
    return path


@pytest.fixture(scope="module")
def start(store, tmp_path_factory):
    """A model that has learnt a little."""
    workdir = tmp_path_factory.mktemp("start")
    config = tiny_config(store)
    config.train.num_steps = config.eval.every = config.train.checkpoint_every = 30
    train(config, workdir)
    return workdir


def reinforced(store, start, **changes):
    config = tiny_config(store)
    config.train.init_from = str(start)
    config.train.objective = "self_critical"
    config.self_critical.num_samples = 3
    config.search.max_length = 8
    config.optimizer.learning_rate = 0.01
    config.train.num_steps = 40
    config.train.checkpoint_every = config.eval.every = 20
    with config.unlocked():
        config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(store, start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, jax.device_get(train(reinforced(store, start), workdir))


def test_it_adds_to_the_score_of_its_start_and_says_what_it_does(start, finished):
    workdir, _ = finished
    rows = read_jsonl(workdir / "metrics.jsonl")
    scores = {row["step"]: row["val/CIDEr-D"] for row in rows if "val/CIDEr-D" in row}
    assert list(scores) == [0, 20, 40]
    began = json.loads((start / "model" / "model.json").read_text())["scores"]["val/CIDEr-D"]
    np.testing.assert_allclose(scores[0], began, rtol=1e-5)
    assert max(scores[20], scores[40]) > 1.1 * began
    for row in rows:
        if "train/loss" in row:
            diagnostics = ("reward", "baseline", "advantage_std", "length", "repetition", "dangling_end")
            assert {f"train/{name}" for name in diagnostics} <= set(row)
    best = max(scores, key=scores.get)
    assert load_model(str(workdir / "model")).vocabulary.words == load_model(str(start / "model")).vocabulary.words
    assert json.loads((workdir / "model" / "model.json").read_text())["scores"]["step"] == best


def test_captions_come_with_the_references_of_their_own_image(store, start):
    """Whatever the order of the ids; the captions that were drawn are among the references."""
    setup = setup_from(reinforced(store, start), make_mesh(jax.devices()[:1]))
    setup.captions.image_ids = np.random.default_rng(0).permutation(setup.captions.image_ids)
    batch = jax.device_get(next(SelfCritical(setup).batches(first_batch=0)))
    packed = pack_references(setup.captions, setup.vocabulary)
    drawn = packed.number_of_token[batch["tokens"][:, 1:]]
    assert len(drawn) == len(batch["references"]) == 16
    for caption, references in zip(drawn, batch["references"], strict=True):
        assert caption[caption >= 0].tolist() in [r[r >= 0].tolist() for r in references]


def test_what_only_fills_the_vocabulary_up_is_not_learnt(store, start):
    setup = setup_from(reinforced(store, start), make_mesh(jax.devices()[:1]))
    words = setup.vocabulary.words
    filled = Vocabulary([*words[:-2], "<unused0>", "<unused1>"], setup.vocabulary.tokenizer)
    objective = SelfCritical(dataclasses.replace(setup, vocabulary=filled))
    state = objective.init()
    before = np.asarray(state.params["decoder"]["logits"]["bias"])
    state, _ = objective.step(state, next(objective.batches(first_batch=0)))
    changed = np.asarray(state.params["decoder"]["logits"]["bias"]) != before
    assert changed[4:-2].any() and not changed[-2:].any()


@pytest.mark.parametrize("stop_at", [11, 20])
def test_resuming_is_exact(store, start, finished, tmp_path, stop_at):
    config = reinforced(store, start)
    config.train.num_steps = stop_at
    train(config, tmp_path)
    state = jax.device_get(train(reinforced(store, start), tmp_path))
    assert int(state.step) == int(finished[1].step)
    jax.tree.map(np.testing.assert_array_equal, state.params, finished[1].params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, finished[1].opt_state)


@pytest.mark.usefixtures("quick_children")
def test_two_processes_reinforce_like_one(store, start, tmp_path):
    config = write_config_file(tmp_path / "config.py", store)
    changes = {"objective": "self_critical", "init_from": start, "num_steps": 6, "log_every": 2}
    options = [f"--config.train.{name}={value}" for name, value in changes.items()]
    options += ["--config.self_critical.num_samples=3", "--config.search.max_length=8", "--config.eval.every=6"]
    command = ["train", f"--config={config}", *options]
    finish(start_capjax(*command, f"--workdir={tmp_path / 'one'}"))
    finish(*start_processes(*command, f"--workdir={tmp_path / 'two'}", devices=2))
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name in set(a) - {"train/words_per_second", "train/seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name


def test_any_objective_may_start_from_a_model_with_its_words(store, start, tmp_path):
    config = tiny_config(store)
    config.train.init_from = str(start / "model")
    config.vocabulary.min_count = 100  # of its own it would have other words
    config.train.num_steps = 1
    train(config, tmp_path)
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "val/loss" in row]
    began = json.loads((start / "model" / "model.json").read_text())["scores"]["val/loss"]
    np.testing.assert_allclose(rows[0]["val/loss"], began, rtol=1e-5)
    # What is told of it is of the words that it has.
    assert "It knows the words of the model that its training began with" in (tmp_path / "model/README.md").read_text()
    config.vocabulary.tokenizer = "ptb"
    train(config, tmp_path / "other")
    assert "words (words)" in overview(load_model(str(tmp_path / "other" / "model")))
    # Another vocabulary of the start is not that of the run.
    shutil.copytree(tmp_path / "model", tmp_path / "changing")
    config.train.init_from = str(tmp_path / "changing")
    train(config, tmp_path / "third")
    own = tiny_config(store)
    own.vocabulary.multiple_of = 5
    train(own, tmp_path / "with_another_vocabulary")
    shutil.rmtree(tmp_path / "changing")
    shutil.copytree(tmp_path / "with_another_vocabulary" / "model", tmp_path / "changing")
    with pytest.raises(CapjaxError, match=r"expected the vocabulary of train\.init_from that .*third was begun with"):
        train(config, tmp_path / "third")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.init_from": ""}, "train.init_from"),
        ({"train.init_from": "nowhere"}, r"expected a model directory .*nowhere \(train\.init_from, which a run needs"),
        ({"train.label_smoothing": 0.1}, "label_smoothing"),
        ({"eval.best_metric": "loss"}, r"eval\.best_metric to be a score"),
        ({"self_critical.baseline": "best"}, "self_critical.baseline"),
        ({"self_critical.num_samples": 1}, "num_samples of at least 2"),
        ({"self_critical.xe_weight": -1.0}, "self_critical.xe_weight"),
        ({"self_critical.temperature": 0.0}, "self_critical.temperature of at least"),
        ({"decoder.hidden_size": 13}, "decoder.hidden_size = 12"),
        ({"decoder": decoder_config("att2in")}, "expected the decoder 'init_inject' of the model .*, got 'att2in'"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(store, start, tmp_path, change, message):
    config = reinforced(store, start)
    with config.unlocked():
        if "decoder" in change:
            config.decoder = change.pop("decoder")
    config.update_from_flattened_dict(change)
    with pytest.raises(CapjaxError, match=message):
        train(config, tmp_path / "run")


def test_the_recipe_changes_any_other():
    plain, changed = load_config("flickr8k_att2in:imported"), load_config(f"{RECIPE}:flickr8k_att2in:imported")
    assert changed.train.objective == "self_critical"
    assert load_config("scenes").eval.best_metric == "loss"
    assert load_config(f"{RECIPE}:scenes").eval.best_metric == "CIDEr-D", "loss rises"
    assert changed.decoder == plain.decoder and changed.dataset == plain.dataset
