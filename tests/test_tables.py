"""The documents' tables of measured numbers are those of the ledger."""

import importlib.util
import pathlib
import re

import pytest

from capjax.config import changes, load_config
from capjax.report.ledger import asked_of, read_ledger

ROOT = pathlib.Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.name)
def test_documents_hold_what_the_ledger_says(document):
    text = document.read_text()
    assert tables.with_tables(text, read_ledger(tables.LEDGER)) == text, "run python experiments/tables.py"


def row(seed=0, cider=0.4, date="2026", **changes):
    return {
        "recipe": "flickr8k_att2in:imported",
        "config_sha256": "a",
        "seeds": [seed],
        "encoder": "x.npz",
        "data": {"dataset": "flickr8k/captions", "split": "val", "num_images": 10},
        "search": {"method": "beam", "beam_size": 3, "length_penalty": 0.0},
        "scores": {"BLEU-4": 0.17, "CIDEr-D": cider},
        "intervals": {"CIDEr-D": [cider - 0.1, cider + 0.1]},
        "captions_per_second": 100.4,
        "validation": {"val/loss": 3.0, "val/perplexity": 20.1, "val/accuracy": 0.37},
        "training_seconds": 600.0,
        "health": {"dangling_end": 0.03, "repetition": 0.126, "mean_length": 11.1},
        "date": date,
    } | changes


def test_runs_of_several_seeds_are_one_line_and_a_repeated_one_counts_once():
    rows = [row(0, 0.2), row(0, 0.4), row(1, 0.5), row(0, 0.3, search={"method": "greedy"})]
    lines = tables.flickr8k(rows)[2:]
    assert len(lines) == 2
    assert "× 2 seeds" in lines[0] and "| 45.0 (40.0–50.0) |" in lines[0] and "| beam 3 |" in lines[0]
    assert "| greedy |" in lines[1] and "| 30.0 [20.0, 40.0] |" in lines[1] and "| – |" in lines[1]


def test_an_ensemble_is_no_seed():
    lines = tables.flickr8k([row(0, 0.2), row(seeds=[0, 1], cider=0.4)])[2:]
    assert ["ensemble of 2" in line for line in lines] == [False, True]
    assert "| 20.0 [10.0, 30.0] |" in lines[0] and "| 40.0 [30.0, 50.0] |" in lines[1]


def test_lines_mix_no_models_and_no_searches():
    rows = [row(0, 0.4), row(0, 0.3, config_sha256="b")]
    rows += [row(0, 0.9, search={"method": "beam", "beam_size": 3, "length_penalty": 0.0, "no_repeat_ngram_size": 2})]
    lines = tables.flickr8k_searches(rows)[2:]
    assert [re.findall(r"(\d+\.\d) \[", line) for line in lines] == [["40.0"], ["30.0"]]
    assert "| beam 3, no repeat ngram size 2 |" in "\n".join(tables.flickr8k(rows))


def test_what_a_run_changed_of_its_recipe_is_told():
    given = ["train.num_steps=9", "seed=3", "log.histograms=false", "train.checkpoint_every=7"]
    asked = asked_of(changes(load_config("flickr8k_att2in:imported", given)))
    name = "`flickr8k_att2in:imported`, train.num_steps 9"
    assert tables.flickr8k([row(config=asked)])[2].startswith(f"| {name} | x.npz |")
    assert len(tables.flickr8k_searches([row(config=asked)])) == 2, "the recipes themselves are compared"


def test_reinforcement_stands_beside_its_start_of_the_same_seed():
    health = {"dangling_end": 0.0, "repetition": 0.01, "mean_length": 9.0}
    rows = [row(0, 0.4), row(1, 0.3), row(2, 0.3, search={"method": "greedy"})]
    rows += [row(1, 0.45, recipe="flickr8k_self_critical:flickr8k_att2in:imported", health=health)]
    rows += [row(2, 0.45, recipe="flickr8k_self_critical:flickr8k_att2in:imported", health=health)]  # no start of it
    rows += [row(1, 0.9, encoder="y.npz")]  # of other features
    (line,) = tables.flickr8k_reinforcement(rows)[2:]
    cells = ["`flickr8k_att2in:imported`, seed 1", "–", "beam 3", "30.0 → 45.0", "+15.0", "3.0 → 0.0", "12.6 → 1.0"]
    assert line == "| " + " | ".join([*cells, "11.1 → 9.0"]) + " |"
    old = [row(0, 0.4), row(0, 0.45, recipe="flickr8k_self_critical:imported", health=health)]
    assert "`flickr8k_att2in:imported`, seed 0" in tables.flickr8k_reinforcement(old)[2]


def test_other_data_is_left_out():
    assert len(tables.flickr8k([row(data={"dataset": "scenes", "split": "test", "num_images": 1})])) == 2


def test_recipes_are_compared_by_search_the_best_first():
    penalised = {"method": "beam", "beam_size": 3, "length_penalty": 1.0}
    rows = [row(0, 0.4), row(0, 0.3, search={"method": "greedy"}), row(0, 0.5, search=penalised)]
    rows += [row(seed, cider, recipe="other", config_sha256="b") for seed, cider in ((0, 0.6), (1, 0.7))]
    lines = tables.flickr8k_searches(rows)[2:]
    assert lines == [
        "| `other` | x.npz | – | 65.0 (60.0–70.0) | – |",
        "| `flickr8k_att2in:imported` | x.npz | 30.0 [20.0, 40.0] | 40.0 [30.0, 50.0] | 50.0 [40.0, 60.0] |",
    ]
