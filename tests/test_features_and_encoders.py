"""Whose eyes see: cached features serve the encoder that made them, of the images as they are, and no other."""

import json
import shutil
import signal

import numpy as np
import pytest

from capjax.captioning.loaded_model import load_model
from capjax.cli import main
from capjax.data import feature_import, feature_store
from tests.tiny_runs import finish, free_port, read_until, start_capjax, start_processes
from tests.toy_project import changed, config, draw, prepare, prepare_again

SHORT = changed({"train.num_steps": 2, "eval.every": 2})


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Prepared toys with features, and three models: on the features, fine-tuned on images, on imported features."""
    root = tmp_path_factory.mktemp("shared")
    prepare(root)
    assert main(["features", *config(root)]) == 0
    assert main(["train", *config(root), *SHORT, f"--workdir={root / 'cached'}"]) == 0
    tuned = changed({"features.dir": "", "encoder.learning_rate_scale": 0.1})
    assert main(["train", *config(root), *SHORT, *tuned, f"--workdir={root / 'tuned'}"]) == 0
    names = [f"{i:02d}.png" for i in range(32)]
    rng = np.random.default_rng(0)
    np.savez(root / "x.npz", file_name=names, pooled=rng.normal(size=(32, 6)), grid=rng.normal(size=(32, 4, 6)))
    assert main(["features", *imported(root), f"--import={root / 'x.npz'}"]) == 0
    assert main(["train", *imported(root), *SHORT, f"--workdir={root / 'imported'}"]) == 0
    return root


def imported(root):
    return [*config(root), *changed({"encoder.weights": "", "features.dir": root / "features-imported"})]


@pytest.fixture
def project(shared, tmp_path):
    """A copy of the data and features that a test may change; the models stay where they are."""
    for name in ("photos", "data", "features", "features-imported"):
        shutil.copytree(shared / name, tmp_path / name)
    for name in ("captions.csv", "x.npz"):
        shutil.copy(shared / name, tmp_path)
    return tmp_path


def evaluate(root, model, *options):
    command = ["evaluate", f"--model={model}", "--split=val", f"--out={root / 'evaluation'}", *options]
    status = main([*command, f"--data_dir={root / 'data'}", "--metrics=CIDEr-D", "--bootstrap_samples=0"])
    return status or {
        row["image_id"]: row["caption"] for row in json.loads((root / "evaluation" / "results.json").read_text())
    }


def pooled_features(path):
    store = feature_store.open_store(path, {})
    return np.stack([row.pooled for split in store.splits for row in store.features(split)])


def refusal(capsys, command):
    """Return the one line by which a command is refused."""
    assert main(command) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("capjax: error: "))
    return line


def test_features_of_another_encoder_are_refused(project, capsys):
    assert "weights_sha256" in refusal(capsys, ["features", *config(project), "--config.seed=1"])
    assert "weights_sha256" in refusal(
        capsys, ["train", *config(project), "--config.seed=1", f"--workdir={project / 'run'}"]
    )
    half = changed({"encoder.dtype": "bfloat16"})
    assert "compute_dtype = 'bfloat16'" in refusal(capsys, ["features", *config(project), *half])


def test_finished_extraction_has_nothing_left_to_do(project, capsys):
    assert main(["features", *config(project)]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_new_captions_are_noticed_and_taken_over_without_encoding_again(project, capsys):
    text = (project / "captions.csv").read_text()
    (project / "captions.csv").write_text(text.replace("there is a", "here you see a"))
    assert prepare_again(project, "--overwrite") == 0
    train = ["train", *config(project), *SHORT, f"--workdir={project / 'run'}"]
    assert "run capjax features once more" in refusal(capsys, train)
    assert main(["features", *config(project)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert main(train) == 0
    assert "here" in load_model(str(project / "run" / "model")).vocabulary.ids


def test_a_photo_that_changed_under_its_name_is_noticed(project, capsys):
    draw(project / "photos" / "03.png", "blue", "rectangle")
    assert prepare_again(project, "--overwrite") == 0
    assert "found others" in refusal(capsys, ["train", *config(project), f"--workdir={project / 'run'}"])
    assert "found others" in refusal(capsys, ["features", *config(project)])


def test_another_version_of_the_dataset_is_refused(project, capsys):
    (dataset,) = (project / "data" / "folder" / "toys").iterdir()
    dataset.rename(dataset.with_name("9.9.9"))
    assert "dataset_version = '9.9.9'" in refusal(capsys, ["features", *config(project)])


def test_imported_features_with_other_captions_are_noticed(project, capsys):
    text = (project / "captions.csv").read_text()
    (project / "captions.csv").write_text(text.replace("there is a", "here you see a"))
    assert prepare_again(project, "--overwrite") == 0
    assert "run capjax features once more" in refusal(
        capsys, ["train", *imported(project), f"--workdir={project / 'run'}"]
    )


def test_imported_features_may_lack_images_of_the_dataset(project):
    with np.load(project / "x.npz") as whole:
        np.savez(project / "some.npz", **{name: whole[name][3:] for name in whole})
    partly = [*imported(project), *changed({"features.dir": project / "partly"})]
    assert main(["features", *partly, f"--import={project / 'some.npz'}"]) == 0
    store = feature_store.open_store(project / "partly", {})
    assert sum(store.num_rows(split) for split in store.splits) == 29
    assert main(["train", *partly, *SHORT, f"--workdir={project / 'run'}"]) == 0


def test_an_import_that_cannot_be_meant_so_leaves_nothing(project, capsys, monkeypatch):
    """Names that lead nowhere, and a configuration whose encoder did not make the features."""
    with np.load(project / "x.npz") as whole:
        names = [f"photos/{name}" for name in whole["file_name"]]
        np.savez(project / "wrong.npz", **(dict(whole) | {"file_name": names}))
    new = [*imported(project), *changed({"features.dir": project / "new"})]
    assert "none of its file names is in the dataset" in refusal(
        capsys, ["features", *new, f"--import={project / 'wrong.npz'}"]
    )
    own = changed({"encoder.weights": "random"})
    assert "set --config.encoder.weights= here" in refusal(
        capsys, ["features", *new, *own, f"--import={project / 'x.npz'}"]
    )
    assert not (project / "new").exists()
    asked = []
    monkeypatch.setattr(feature_import, "check_room", lambda folder, size, what: asked.append(size))
    for _ in range(2):
        assert main(["features", *new, f"--import={project / 'x.npz'}"]) == 0
    assert asked == [32 * (1 + 4) * 6 * 4, 0], "bytes of what is missing"


def test_a_model_on_another_machine_looks_with_its_own_encoder(shared, project, capsys):
    """Neither the features nor the encoder's file are there: the model directory and the dataset are enough."""
    shutil.copytree(shared / "cached" / "model", project / "model")
    header = json.loads((project / "model" / "model.json").read_text())
    header["config"]["features"]["dir"] = "/nowhere/features"
    header["config"]["encoder"]["weights"] = "/nowhere/encoder.safetensors"
    (project / "model" / "model.json").write_text(json.dumps(header))
    elsewhere = evaluate(project, project / "model")
    assert "looking at the images" in capsys.readouterr().err
    assert elsewhere == evaluate(project, shared / "cached" / "model")


def test_a_fine_tuned_encoder_takes_no_features_of_the_original(shared, project, capsys):
    assert evaluate(project, shared / "tuned" / "model", f"--features_dir={project / 'features'}") == 1
    assert "weights_sha256" in capsys.readouterr().err
    assert len(evaluate(project, shared / "tuned" / "model")) == 8


def test_an_ensemble_decodes_nobody_elses_features(shared, project, capsys):
    both = f"{shared / 'cached' / 'model'},{shared / 'tuned' / 'model'}"
    assert evaluate(project, both) == 1
    assert "sees with another encoder; --features_dir=" in capsys.readouterr().err
    assert len(evaluate(project, both, "--features_dir=")) == 8


def test_imported_features_of_another_dataset_must_be_named(shared, project, capsys):
    model = shared / "imported" / "model"
    assert len(evaluate(project, model)) == 8
    shutil.copytree(project / "data" / "folder" / "toys", project / "data" / "folder" / "others")
    assert evaluate(project, model, "--dataset=folder/others") == 1
    assert "of another dataset" in capsys.readouterr().err
    store = f"--features_dir={project / 'features-imported'}"
    assert evaluate(project, model, "--dataset=folder/others", store) == 1
    assert "dataset = 'folder/others'" in capsys.readouterr().err
    assert evaluate(project, model, "--features_dir=") == 1
    assert "nothing to see images with" in capsys.readouterr().err


def test_every_member_of_an_ensemble_must_fit_imported_features(shared, project, capsys):
    """Features of equal size from another program would pass for those that a model knows."""
    shutil.copytree(shared / "imported" / "model", project / "other")
    header = json.loads((project / "other" / "model.json").read_text())
    header["features"]["sha256"] = "0" * 64
    (project / "other" / "model.json").write_text(json.dumps(header))
    both = f"{shared / 'imported' / 'model'},{project / 'other'}"
    capsys.readouterr()
    assert evaluate(project, both) == 1
    assert f"the model {project / 'other'} was trained on" in capsys.readouterr().err
    assert len(evaluate(project, both, f"--features_dir={project / 'features-imported'}")) == 8
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and f"the model {project / 'other'} was trained on" in warnings[0]


def test_an_ensemble_does_not_depend_on_who_needs_a_grid_first(shared, project):
    attends = changed({"decoder.name": "soft_attention", "encoder.grid": True})
    attends += changed({f"decoder.{name}": 16 for name in ("embed_size", "hidden_size", "attention_size")})
    assert main(["train", *imported(project), *SHORT, *attends, f"--workdir={project / 'run'}"]) == 0
    models = [shared / "imported" / "model", project / "run" / "model"]
    one, two = (evaluate(project, ",".join(map(str, order))) for order in (models, models[::-1]))
    assert len(one) == 8 and one == two


def test_features_of_another_size_are_one_clear_line(shared, project, capsys):
    assert evaluate(project, shared / "imported" / "model", f"--features_dir={project / 'features'}") == 1
    assert "numbers an image" in capsys.readouterr().err


def test_two_processes_extract_what_one_does_holes_filled(project):
    """File by file; some shards are there already, and the processes look at different times: none is left out."""
    alone, together = project / "alone", project / "together"
    finish(start_capjax("features", *config(project), *changed({"features.dir": alone}), devices=8))
    shutil.copytree(alone, together)
    (together / "train" / "pooled-00000.npy").unlink()
    shutil.rmtree(together / "val")
    finish(*start_processes("features", *config(project), *changed({"features.dir": together}), devices=2))
    one, two = (
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (alone, together)
    )
    assert one == two


SMALL_SHARDS = """
import os, signal, sys
from capjax import cli, extract_features
from capjax.data import feature_store
feature_store.ROWS_PER_SHARD = 4
"""
IS_KILLED_AT_WORK = "extract_features.Encode.__call__ = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
MAIN = "sys.exit(cli.main(sys.argv[1:]))"


UNDER_SLURM = """
numbers = {"SLURM_NTASKS": 2, "SLURM_PROCID": int(sys.argv.pop(1)), "SLURM_LOCALID": 0}
numbers |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": int(sys.argv.pop(1))}
os.environ |= {name: str(number) for name, number in numbers.items()}
"""


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("under_slurm", [False, True])
def test_a_killed_process_ends_no_other_and_what_it_left_is_told(project, monkeypatch, killed, under_slurm):
    """Where JAX finds the others for it, as under Slurm, and where it was numbered."""
    shutil.rmtree(project / "features")
    command = ["features", *config(project)]
    programs = {1 - killed: SMALL_SHARDS + MAIN, killed: SMALL_SHARDS + IS_KILLED_AT_WORK + MAIN}
    if under_slurm:
        job = str(free_port())  # from which JAX makes a port for all
        runs = [
            start_capjax(str(i), job, *command, "--distributed", devices=2, program=("-c", program))
            for i, program in sorted((i, program.replace(MAIN, UNDER_SLURM + MAIN)) for i, program in programs.items())
        ]
    else:
        special = {i: {"program": ("-c", program)} for i, program in programs.items()}
        runs = start_processes(*command, special=special)
    finish(runs[killed], status=-signal.SIGKILL)
    (said,) = finish(runs[1 - killed])
    assert "features of 16 of 32 images are left to other processes" in said
    alone = changed({"features.dir": project / "alone"})
    for rest in (), alone:  # what is left, and all of it where nobody is killed
        finish(start_capjax(*command, *rest, program=("-c", SMALL_SHARDS + MAIN)))
    monkeypatch.setattr(feature_store, "ROWS_PER_SHARD", 4)  # to read them
    np.testing.assert_array_equal(*(pooled_features(project / name) for name in ("features", "alone")))


def test_two_processes_that_extract_end_at_a_signal(shared, project):
    """Nothing has to be saved: what is on disk is whole."""
    shutil.rmtree(project / "features")
    runs = start_processes("features", *config(project))
    read_until(runs[0], "writing features")
    for run in runs:
        run.send_signal(signal.SIGTERM)
    finish(*runs, status=-signal.SIGTERM)
    assert main(["features", *config(project)]) == 0
    # Whether shards of theirs are there already depends on the moment.
    expected = pooled_features(shared / "features")
    np.testing.assert_allclose(pooled_features(project / "features"), expected, rtol=1e-5, atol=1e-6)


def test_shards_are_dealt_by_number_whatever_is_there(project, monkeypatch):
    monkeypatch.setattr(feature_store, "ROWS_PER_SHARD", 4)
    shutil.rmtree(project / "features")
    written = []
    for process in (0, 2, 1):  # one after the other, so that each finds what the others wrote
        # Numbered, they ask for nobody: none listens there.
        numbers = ["--coordinator=127.0.0.1:1", "--num_processes=3", f"--process_id={process}"]
        assert main(["features", *config(project), *numbers]) == 0
        shards = sorted((project / "features").glob("*/pooled-*.npy"))
        written.append(len(shards) - sum(written))
    assert written == [3, 2, 3] and sum(written) == 8
    assert not feature_store.open_store(project / "features", {}).missing_shards("train")


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png"])
def test_file_names_do_not_lead_out_of_the_folder_of_photos(shared, project, name):
    """A dataset that somebody else prepared may name anything; a page is shared."""
    draw(project / "secret.png", "red", "ellipse")
    (project / "empty" / "sub").mkdir(parents=True)
    path = next((project / "data" / "folder" / "toys").glob("*/captions-val.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"file_name": name}) + "\n" for row in rows))
    model, images = shared / "tuned" / "model", project / "empty"
    assert evaluate(project, model, f"--images={images}")
    assert "data:image" not in (project / "evaluation" / "report.html").read_text()
    draw(images / "sub" / "fine.png", "red", "ellipse")
    path.write_text("".join(json.dumps(row | {"file_name": "sub/fine.png"}) + "\n" for row in rows))
    assert evaluate(project, model, f"--images={images}")
    assert "data:image" in (project / "evaluation" / "report.html").read_text()


@pytest.mark.parametrize(
    ("recipe", "argument", "num_workers"),
    [("coco_finetune", "", 2), ("scenes", ":from_scratch", 0)],
    ids=["coco_finetune", "from_scratch"],
)
def test_recipes_that_train_on_images_do(shared, tmp_path, recipe, argument, num_workers):
    """At their own settings of augmentation, precision, BatchNorm and captions per image; small sizes."""
    small = {"features.dir": "", "train.batch_size": 80, "train.num_steps": 2, "eval.every": 2}
    small |= {f"decoder.{name}": 16 for name in ("embed_size", "hidden_size")}
    small |= {"optimizer.warmup_steps": 0, "vocabulary.min_count": 1, "train.num_workers": num_workers}
    command = ["train", *config(shared, recipe, argument), *changed(small), f"--workdir={tmp_path / 'run'}"]
    assert main(command) == 0
    before, after = load_model(str(shared / "cached" / "model")), load_model(str(tmp_path / "run" / "model"))
    assert after.encoder.sha256 != before.encoder.sha256, "the encoder is trained"
    assert main(["caption", f"--model={tmp_path / 'run' / 'model'}", str(shared / "photos" / "00.png")]) == 0


def test_a_run_starts_only_from_models_that_see_as_it_does(shared, project, tmp_path, capsys):
    def start(model, *options):
        return [
            "train",
            *options,
            *SHORT,
            f"--config.train.init_from={shared / model}",
            f"--workdir={tmp_path / 'run'}",
        ]

    assert "expected features as" in refusal(capsys, start("tuned", *config(project)))
    assert "expected features as" in refusal(capsys, start("imported", *config(project)))
    assert "expected features as" in refusal(capsys, start("cached", *imported(project)))
    assert main(start("cached", *config(project))) == 0
    tuned = changed({"features.dir": "", "encoder.learning_rate_scale": 0.1})
    assert main([*start("tuned", *config(project), *tuned), f"--workdir={tmp_path / 'images'}"]) == 0
    scores = json.loads((shared / "tuned" / "model" / "model.json").read_text())["scores"]
    first = json.loads((tmp_path / "images" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and first["val/loss"] == pytest.approx(scores["val/loss"], rel=1e-5)


@pytest.mark.parametrize(("field", "value"), [("grid_side", 1), ("crop", "none"), ("resize", "box")])
def test_eyes_are_more_than_weights(shared, project, capsys, field, value):
    """The same weights behind another crop, or another grid, make other features."""
    shutil.copytree(shared / "cached" / "model", project / "other")
    header = json.loads((project / "other" / "model.json").read_text())
    header["config"]["encoder"][field] = value
    if field == "grid_side":
        header["encoder"]["grid_side"] = value
    (project / "other" / "model.json").write_text(json.dumps(header))
    both = f"{shared / 'cached' / 'model'},{project / 'other'}"
    assert evaluate(project, both) == 1
    printed = capsys.readouterr().err
    assert "sees with another encoder" in printed or "preprocesses differently" in printed
    start = ["train", *config(project), *SHORT, f"--config.train.init_from={project / 'other'}"]
    assert "expected features as" in refusal(capsys, [*start, f"--workdir={project / 'run'}"])
    from_images = [*start, "--config.features.dir=", f"--workdir={project / 'images'}"]
    if field == "grid_side":
        assert "whose grid_side is 1, got 0; set --config.encoder.grid_side" in refusal(capsys, from_images)
    else:  # which may change with a run that sees images
        assert main(from_images) == 0


@pytest.mark.parametrize("side", [1, 7])
def test_a_smaller_grid_is_what_training_and_captioning_see(project, tmp_path, side):
    """Features pooled to 1 position of 49, in eight bits: a model of them captions photos, by the same pooling.

    A side of 7 pools nothing, but no less than 49 positions can be pooled to it.
    """
    small = changed({"features.dir": tmp_path / "pooled", "encoder.grid": True, "features.dtype": "uint8"})
    small += changed({"decoder.name": "soft_attention", "decoder.hidden_size": 8, "decoder.embed_size": 8})
    assert main(["features", *config(project), *small, *changed({"encoder.grid_side": 3})]) == 1, "3 divides no 7"
    small += changed({"encoder.grid_side": side})
    assert main(["features", *config(project), *small]) == 0
    store = feature_store.open_store(tmp_path / "pooled", {})
    assert store.num_positions == side**2 and store.key["encoder"]["grid_side"] == side
    for row in store.features("val", grid=True):
        np.testing.assert_allclose(row.grid.mean(axis=0), row.pooled, rtol=1e-2, atol=1e-3)
    assert main(["train", *config(project), *small, *SHORT, f"--workdir={tmp_path / 'run'}"]) == 0
    model = load_model(str(tmp_path / "run" / "model"))
    assert model.encoder.config.grid_side == side
    from_features = evaluate(project, tmp_path / "run" / "model")
    assert evaluate(project, tmp_path / "run" / "model", "--features_dir=") == from_features
