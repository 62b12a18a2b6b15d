"""A recipe scaled to more devices: the stated rule, and a run that keeps the scale it was begun with."""

import json

import pytest

from capjax.config import default_config
from capjax.errors import CapjaxError
from capjax.training_run.batch_scaling import scale_batch, scale_of
from capjax.training_run.setup import make_optimization
from tests.tiny_runs import finish, make_store, saved_step, start_capjax, write_config_file


def recipe(**optimizer):
    config = default_config()
    config.optimizer.update(
        {"schedule": "exponential", "warmup_steps": 400, "decay_steps": 1000, "weight_decay": 0.0} | optimizer
    )
    config.train.ema_decay = 0.99
    return config


@pytest.mark.parametrize("name, factor", [("adam", 2.0), ("lion", 2.0), ("sgd", 4.0)])
def test_the_schedule_is_the_same_by_examples_but_for_the_factor(name, factor):
    config = recipe(name=name)
    scaled = scale_batch(config, 4)
    assert scaled.train.batch_size == 4 * config.train.batch_size
    assert scaled.train.num_steps * scaled.train.batch_size == config.train.num_steps * config.train.batch_size
    assert [scaled.eval.every, scaled.train.checkpoint_every, scaled.train.log_every] == [250, 250, 12]
    (of_recipe, _), (of_scaled, _) = make_optimization(config), make_optimization(scaled)
    for step in (0, 40, 99, 100, 360, 2999):  # that is, 1/4 of the recipe's
        assert float(of_scaled(step)) == pytest.approx(factor * float(of_recipe(4 * step)), rel=1e-6)


def test_weights_forget_and_shrink_alike_in_an_epoch():
    config = recipe(name="adamw", weight_decay=0.1)
    scaled = scale_batch(config, 9)
    assert scaled.train.ema_decay == pytest.approx(0.99**9)
    shrinkage = [c.optimizer.weight_decay * c.optimizer.learning_rate * c.train.num_steps for c in (config, scaled)]
    assert shrinkage[0] == pytest.approx(shrinkage[1], rel=1e-3)


def test_every_count_of_steps_is_scaled():
    config = default_config()
    config.train.num_steps = config.optimizer.warmup_steps = config.optimizer.decay_steps = 1000
    scaled, fields = scale_batch(config, 10).to_dict(), config.to_dict()
    counts = {
        (section, name)
        for section, values in fields.items()
        if isinstance(values, dict)
        for name in values
        if ("steps" in name or "every" in name) and name != "accumulate_steps"
    }
    assert len(counts) == 6
    assert all(fields[section][name] == 10 * scaled[section][name] for section, name in counts)


def test_nothing_changes_at_the_scale_of_the_recipe_and_unset_fields_stay_unset():
    assert scale_batch(default_config(), 1).to_dict() == default_config().to_dict()
    scaled = scale_batch(default_config(), 100_000)
    assert (scaled.optimizer.warmup_steps, scaled.train.num_steps, scaled.train.ema_decay) == (0, 1, 0.0)


def test_what_cannot_be_scaled_is_one_line():
    with pytest.raises(CapjaxError, match="--scale_batch of at least 1, got -2"):
        scale_batch(default_config(), -2)
    config = default_config()
    config.scheduled_sampling.schedule = "linear"
    with pytest.raises(CapjaxError, match="scheduled_sampling"):
        scale_batch(config, 2)


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 100_000, '{"train": 3}', "\ud800"])
def test_a_damaged_description_of_a_run_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CapjaxError, match=r"config\.json"):
        scale_of(tmp_path, default_config())
    (tmp_path / "config.json").unlink()
    assert scale_of(tmp_path, default_config()) is None


@pytest.mark.usefixtures("quick_children")
def test_a_run_takes_the_devices_it_finds_and_keeps_its_scale_on_others(tmp_path):
    make_store(tmp_path / "store")
    config_file = write_config_file(tmp_path / "config.py", tmp_path / "store")
    workdir = tmp_path / "run"
    command = ["train", f"--config={config_file}", f"--workdir={workdir}", "--config.vocabulary.multiple_of=2"]
    # Four devices, of which two share a part of the batch.
    (said,) = finish(start_capjax(*command, "--scale_batch=0", devices=1), status=1)
    assert said.endswith("expected --scale_batch of at least 1, got 0\n")
    finish(start_capjax(*command, "--scale_batch", "--config.mesh.model_parallel=2", devices=4))
    begun = json.loads((workdir / "config.json").read_text())
    assert (begun["train"]["batch_size"], begun["train"]["num_steps"]) == (32, 6)
    assert saved_step(workdir / "checkpoints") == 6
    (said,) = finish(start_capjax(*command, "--config.train.num_steps=24", "--scale_batch", devices=1))
    assert "from step 6" in said and saved_step(workdir / "checkpoints") == 12
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["optimizer"] == begun["optimizer"] and stored["train"]["batch_size"] == 32
    (said,) = finish(start_capjax(*command, "--scale_batch=4", devices=1), status=1)
    assert "expected" in said and "Traceback" not in said
