"""Where models look, from training on a grid to the picture of it, and the ledger's row of the same evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

from capjax.attention_maps import attention_maps
from capjax.captioning import load_model
from capjax.cli import main
from capjax.config import changes, load_config
from capjax.data.feature_store import open_store
from capjax.data.input_pipeline import visual_rows
from capjax.errors import CapjaxError
from capjax.report.ledger import config_sha256, read_ledger
from tests.toy_project import changed, config, prepare


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


def test_maps_are_those_of_the_words_whatever_shares_the_batch(project):
    model = load_model(str(project / "run" / "model"))
    rows = open_store(project / "features", {}).features("val", grid=True)
    captions = ["a red circle", "there is a blue box", ""]
    together = attention_maps(model, visual_rows([rows[i] for i in range(3)]), captions)
    assert [maps.shape for maps in together] == [(4, 7, 7), (6, 7, 7), (1, 7, 7)]
    for i, (maps, caption) in enumerate(zip(together, captions, strict=True)):
        np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1.0, rtol=1e-5)
        alone = attention_maps(model, visual_rows([rows[i]]), [caption])[0]
        np.testing.assert_allclose(maps, alone, rtol=1e-4, atol=1e-6)
    assert np.ptp(together[0]) > 0


def test_a_decoder_without_attention_has_none_to_show(project, tmp_path):
    plain = changed({"train.num_steps": 1, "eval.every": 1})
    assert main(["train", *config(project), *plain, f"--workdir={tmp_path}"]) == 0
    model = load_model(str(tmp_path / "model"))
    rows = open_store(project / "features", {}).features("val", grid=True)
    with pytest.raises(CapjaxError, match="InitInjectDecoder looks at images once"):
        attention_maps(model, visual_rows([rows[0]]), ["a red circle"])
    command = ["evaluate", f"--model={tmp_path / 'model'}", "--split=val", f"--data_dir={project / 'data'}"]
    assert main([*command, "--attention", f"--out={tmp_path / 'evaluation'}"]) == 1
    assert not (tmp_path / "evaluation").exists(), "it is said before the work"


def test_evaluation_draws_attention_and_keeps_a_ledger(project, tmp_path, capsys):
    command = ["evaluate", f"--model={project / 'run' / 'model'}", "--split=val", f"--data_dir={project / 'data'}"]
    command += ["--bootstrap_samples=10", f"--ledger={tmp_path / 'ledger.jsonl'}"]
    assert main([*command, "--attention", f"--out={tmp_path / 'a'}"]) == 0
    assert main([*command, "--beam_size=2", "--metrics=CIDEr-D", f"--out={tmp_path / 'b'}"]) == 0
    with Image.open(tmp_path / "a" / "attention.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 8 * 236
    assert not (tmp_path / "b" / "attention.png").exists()

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
