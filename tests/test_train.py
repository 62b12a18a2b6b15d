"""The training loop: what it learns, logs and keeps, and what it refuses."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from capjax.cli import main
from capjax.data.feature_store import open_store
from capjax.errors import CapjaxError
from capjax.metrics import coco_caption
from capjax.model_directory import load_model_directory
from capjax.sharding import make_mesh
from capjax.train import train
from capjax.training.train_state import parameter_overview
from capjax.training_run.objectives import OBJECTIVES, CrossEntropy
from capjax.training_run.setup import local_batches, setup_from
from capjax.training_run.validation import Validation
from capjax.types import CaptionRecord, Features
from tests.tiny_runs import NUM_FEATURES, make_store, read_jsonl, saved_step, tiny_config, write_config_file


def test_log_and_model_of_a_run(finished):
    workdir, state = finished
    assert state.step == 12
    rows = read_jsonl(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 12]
    for row in rows:
        if "val/loss" in row:
            assert row["val/perplexity"] == pytest.approx(np.exp(row["val/loss"]))
            assert 0 <= row["val/accuracy"] <= 1
    model = load_model_directory(workdir / "model")
    assert model.encoder is None
    assert model.scores["step"] in (6, 12)
    assert list((workdir / "tensorboard").iterdir())


def test_learns_to_name_what_the_features_hold(store, tmp_path):
    config = tiny_config(store)
    config.train.num_steps = config.eval.every = 150
    config.optimizer.learning_rate = 0.04
    train(config, tmp_path)
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    # The two captions of an image differ from their first word on: half the images' first words cannot be known.
    assert last["val/accuracy"] > 0.75
    assert last["val/CIDEr-D"] > 2.0


def test_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e15
    config.train.log_every = 12
    config.train.checkpoint_every = 1
    config.train.keep_checkpoints = 20
    with pytest.raises(CapjaxError, match=r"not finite at step \d+") as error:
        train(config, tmp_path)
    first_bad = int(str(error.value).partition("at step ")[2].partition(" ")[0])
    assert 1 < first_bad < 12, "between two log lines"
    labels = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert labels == list(range(1, first_bad))
    while labels:
        assert saved_step(tmp_path / "checkpoints") == labels[-1]
        shutil.rmtree(tmp_path / "checkpoints" / str(labels.pop()))


def test_loss_that_is_not_finite_is_noticed_before_a_validation(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e15
    config.train.log_every = config.train.checkpoint_every = 100
    with pytest.raises(CapjaxError, match=r"not finite at step [2-6] "):
        train(config, tmp_path)
    assert not read_jsonl(tmp_path / "metrics.jsonl")
    assert not (tmp_path / "model").exists()


def test_the_moving_average_is_what_is_validated_and_kept(store, tmp_path):
    config = tiny_config(store)
    config.train.ema_decay = 0.9
    config.eval.every = 12
    state = train(config, tmp_path)
    kept = load_model_directory(tmp_path / "model").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(state.ema_params))
    (logged,) = (row for row in read_jsonl(tmp_path / "metrics.jsonl") if "val/loss" in row)
    validate = Validation(setup_from(config, make_mesh()))
    average, latest = (validate(state.replace(params=p, ema_params={}))[0] for p in (state.ema_params, state.params))
    assert logged["val/loss"] == pytest.approx(average["val/loss"])
    assert abs(logged["val/loss"] - latest["val/loss"]) > 0.01


def test_parameters_are_laid_out_by_one_process_alone(store, tmp_path, monkeypatch):
    """Of arrays on the host: what is computed of global ones, all processes would have to compute."""
    seen = []

    def overview(params):
        seen.extend(jax.tree.leaves(params))
        return parameter_overview(params)

    monkeypatch.setattr("capjax.train.parameter_overview", overview)
    config = tiny_config(store)
    config.train.num_steps = 1
    train(config, tmp_path)
    assert {type(leaf) for leaf in seen} == {np.ndarray}


def test_another_objective_is_a_class_and_a_line_in_the_table(store, tmp_path, monkeypatch):
    class Half:
        """Cross-entropy that tells half of its loss, and only what the loop needs."""

        def __init__(self, setup):
            self._task = CrossEntropy(setup)

        def init(self):
            return self._task.init()

        def batches(self, first_batch):
            return self._task.batches(first_batch)

        def step(self, state, batch):
            state, metrics = self._task.step(state, batch)
            return state, {
                "loss": metrics["loss"] / 2,
                "gradient_norm": metrics["gradient_norm"],
                "num_words": metrics["num_words"],
            }

        def learning_rate(self, step):
            return 0.25

    monkeypatch.setitem(OBJECTIVES, "half", Half)
    config = tiny_config(store)
    config.train.objective, config.train.num_steps, config.eval.every = "half", 4, 4
    assert int(train(config, tmp_path).step) == 4
    (told,) = (row for row in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in row)
    names = {"step", "train/loss", "train/gradient_norm", "train/words_per_second", "train/seconds", "learning_rate"}
    assert set(told) == names and told["learning_rate"] == 0.25
    assert (tmp_path / "model" / "model.json").exists()


def test_validations_that_are_no_multiple_of_log_lines_label_checkpoints_by_their_step(store, tmp_path):
    config = tiny_config(store)
    config.train.log_every, config.train.checkpoint_every, config.eval.every = 5, 3, 3
    assert int(train(config, tmp_path).step) == 12
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [9, 12]
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 12]


def test_early_stopping_and_the_same_command_again(store, tmp_path):
    config = tiny_config(store)
    config.optimizer.learning_rate = 0.0
    config.eval.every, config.eval.patience, config.eval.best_metric = 2, 2, "loss"
    for _ in range(3):
        assert int(train(config, tmp_path).step) == 6
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/loss" in row] == [2, 4, 6]
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 6], "the last steps are told as well"


def test_one_image_can_be_learnt_by_heart(tmp_path):
    """Its CIDEr-D is 0 whatever is said of it: the loss chooses the model."""
    make_store(tmp_path / "store", num_images=1)
    config = tiny_config(tmp_path / "store")
    config.dataset.val_split = "train"
    train(config, tmp_path / "run")
    assert load_model_directory(tmp_path / "run" / "model").scores["step"] == 12


@pytest.mark.parametrize(
    ("records", "message"),
    [([], "it is empty"), ([CaptionRecord(7, "7.jpg", ())], "to train on, split 'none' has none")],
)
def test_a_split_of_nothing_is_refused(store, finished, tmp_path, capsys, records, message):
    shutil.copytree(store, tmp_path / "store")
    features = open_store(tmp_path / "store", {})
    features.begin_split("none", records)
    if records:
        features.write_shard("none", range(1), Features(np.zeros((1, NUM_FEATURES), np.float32)))
    config = tiny_config(tmp_path / "store")
    config.dataset.train_split = "none"
    with pytest.raises(CapjaxError, match=message):
        train(config, tmp_path / "run")
    evaluate = ["evaluate", f"--model={finished[0] / 'model'}", f"--features_dir={tmp_path / 'store'}", "--split=none"]
    if not records:
        assert main(evaluate) == 1
        assert "split 'none', it is empty" in capsys.readouterr().err


def test_a_run_off_the_main_thread_trains(store, tmp_path):
    """Signals reach the main thread alone."""
    with ThreadPoolExecutor(1) as pool:
        assert int(pool.submit(train, tiny_config(store), tmp_path / "run").result().step) == 12


def test_few_validation_images_are_scored_by_the_training_captions(tmp_path, capsys):
    make_store(tmp_path / "store", num_images=24, num_val_images=1)
    config = tiny_config(tmp_path / "store")
    config.train.num_steps = config.eval.every = 60
    config.optimizer.learning_rate = 0.04
    train(config, tmp_path / "run")
    last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    # By the document frequencies of one image, which are log 1, every caption scores 0.
    said = coco_caption.References({1000: ("a red star", "one star that is red")})
    assert coco_caption.score(said, {1000: "a red star"}, metrics=("CIDEr-D",)).corpus["CIDEr-D"] == 0
    assert last["val/CIDEr-D"] > 0.3
    assert "fewer than 100 validation images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.batch_size": 12}, "train.batch_size that divides over 8 devices .* got 12; try 16"),
        ({"dataset.train_split": "trian"}, "trian"),
        ({"eval.best_metric": "CIDEr"}, "best_metric"),
        ({"features.dir": "/nowhere"}, "feature store"),
        ({"optimizer.name": "adamm"}, "optimizer.name"),
        ({"optimizer.schedule": "cosin"}, "schedule"),
        ({"decoder.name": "lstm"}, "decoder.name"),
        ({"train.dtype": "float8"}, "train.dtype"),
        ({"vocabulary.tokenizer": "spacy"}, "tokenizer"),
        ({"train.objective": "reward"}, "train.objective"),
        ({"optimizer.weight_decay": 0.1}, "weight_decay = 0 for 'adam'"),
        ({"train.accumulate_steps": 4}, "accumulate_steps 4, got 16; try 32"),
        ({"train.captions_per_image": 4}, "captions_per_image 4 .* got 16; try 32"),
        ({"eval.batch_size": 12}, "multiple of the 8 devices"),
        ({"eval.every": 0}, "eval.every"),
        ({"seed": -1}, "seed of at least 0"),
        ({"seed": 2**32}, "seed below 2\\^32"),
    ],
)
def test_wrong_settings_are_clear_errors(store, tmp_path, change, message):
    config = tiny_config(store)
    config.update_from_flattened_dict(change)
    with pytest.raises(CapjaxError, match=message) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_bucket_as_workdir_is_refused_in_one_line(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config_file = write_config_file(tmp_path / "config.py", store)
    assert main(["train", f"--config={config_file}", "--workdir=gs://bucket/run"]) == 1
    assert "mount the bucket" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["config.py"]


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9GB.\nAt …"),
        MemoryError("Unable to allocate 9 GiB"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_one_line(store, tmp_path, capsys, monkeypatch, error):
    def out_of_memory(*_):
        raise error

    monkeypatch.setattr("capjax.train.train", out_of_memory)
    config_file = write_config_file(tmp_path / "config.py", store)
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line and "--config.train.batch_size" in line


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_travel_in_the_dtype_of_the_computation(store, dtype):
    config = tiny_config(store)
    config.train.dtype = dtype
    setup = setup_from(config, make_mesh())
    assert next(local_batches(setup, 0))["features"].pooled.dtype == dtype
    assert next(Validation(setup).batches())["features"].pooled.dtype == dtype


def test_bfloat16_trains_like_float32(store, tmp_path):
    """The curves part by less than 0.05 nats a word, from 2.4 to 0.3: bfloat16 has eight bits of every number.

    That of this seed turns with any change of rounding, by up to 0.03; those of four others stay within 0.01.
    """
    curves = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(store)
        config.train.dtype = dtype
        config.train.num_steps, config.train.log_every, config.eval.every = 120, 10, 40
        train(config, tmp_path / dtype)
        rows = read_jsonl(tmp_path / dtype / "metrics.jsonl")
        curves[dtype] = [row[name] for name in ("train/loss", "val/loss") for row in rows if name in row]
    assert curves["float32"][-1] < 0.5 * curves["float32"][0], "it learns"
    assert curves["bfloat16"] != curves["float32"]
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"], rtol=0, atol=0.05)


def test_scheduled_sampling_draws_nothing_that_only_fills_the_vocabulary_up(store):
    config = tiny_config(store)
    config.scheduled_sampling.schedule, config.scheduled_sampling.k = "linear", 0.0  # all words are drawn
    losses = []
    for num_fillers in (0, 4):
        setup = setup_from(config, make_mesh(jax.devices()[:1]))
        setup.vocabulary.unused_ids = tuple(range(len(setup.vocabulary)))[-num_fillers:] if num_fillers else ()
        objective = CrossEntropy(setup)
        losses.append(float(objective.step(objective.init(), next(objective.batches(first_batch=0)))[1]["loss"]))
    assert losses[0] != losses[1]
