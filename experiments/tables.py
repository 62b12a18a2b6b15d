"""Writes the tables of measured numbers into the documents, from the rows of experiments/results/ledger.jsonl.

    capjax evaluate --model=runs/x/model --split=val --beam_size=3 --ledger=experiments/results/ledger.jsonl
    python experiments/tables.py

A document has a table where it says `<!-- table: NAME -->`, up to `<!-- end of table -->`; NAMEs are the functions of
`TABLES`. Of rows that measure the same the newest stands in the table; runs that differ in their seed alone are one
line, with the mean and the least and greatest. What a run changed of its recipe stands behind the recipe's name.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capjax.config import changes, load_config
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.report.ledger import asked_of, read_ledger

ROOT = pathlib.Path(__file__).parent.parent
LEDGER = ROOT / "experiments" / "results" / "ledger.jsonl"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "experiments" / "results").glob("*.md")))
# Names that recipes had when rows were written.
RENAMED = {"flickr8k_self_critical:imported": "flickr8k_self_critical:flickr8k_att2in:imported"}
# What runs changed whose rows do not tell, by the hash of their configuration (see flickr8k.md).
UNTOLD = {
    "1358f879db090b4a7f514b9ab49328596b4a4722dfdd5bde977308d5b0a57d4b": [
        "encoder.grid_side 4",
        "features.dtype float16",
    ],
}
METRICS = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")

Row = Mapping[str, Any]
Runs = Sequence[Row]


def told_search(row: Row) -> str:
    """Say how captions were searched for."""
    search = dict(row["search"])
    usual = json.loads(json.dumps(DecoderSettings(search["method"]).to_dict()))
    told = f"{search.pop('method').replace('_', ' ')} {search.pop('beam_size', '')}".strip()
    changed = {name.replace("_", " "): value for name, value in search.items() if value != usual.get(name)}
    numbers = (
        f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}" for name, value in changed.items()
    )
    return ", ".join([told, *numbers])


def same_but_for_seeds(rows: Sequence[Row]) -> list[Runs]:
    """Group the rows that measure the same with other seeds, the newest of each seed."""
    groups: dict[tuple, dict[tuple, Row]] = {}
    for row in rows:
        key = (named(row), row["config_sha256"], row["encoder"], str(row["data"]), str(row["search"]))
        groups.setdefault(key, {})[tuple(row["seeds"])] = row
    return [tuple(group.values()) for group in groups.values()]


def changed(row: Row) -> list[str]:
    """List what a run changed of its recipe as that now is; of older rows, which do not tell, what is known of them.

    The weights of an encoder have a column of their own.
    """
    if "config" not in row:
        return UNTOLD.get(row["config_sha256"], [])
    try:
        recipe = asked_of(changes(load_config(recipe_of(row))))
    except CapjaxError:  # somebody's own, or one that is gone
        return ["a recipe that is not here"]
    run = asked_of(row["config"])
    fields = sorted((recipe.keys() | run.keys()) - {"encoder.weights", "encoder.endpoint"})
    return [f"{name} {run.get(name, 'default')}" for name in fields if recipe.get(name) != run.get(name)]


def named(row: Row) -> str:
    """Name the recipe, whether several models voted, and what the run changed of the recipe."""
    ensemble = [f"ensemble of {len(row['seeds'])}"] if len(row["seeds"]) > 1 else []
    return ", ".join([f"`{recipe_of(row)}`", *ensemble, *changed(row)])


def recipe_of(row: Row) -> str:
    """Return the recipe by the name that it has now."""
    return RENAMED.get(row["recipe"], row["recipe"])


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """Format one number, or the mean of several with the least and the greatest."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def scored(runs: Runs, metric: str) -> str:
    """Format a score × 100: with its interval if there is one run, else with the range of the runs."""
    values = [100 * row["scores"][metric] for row in runs if metric in row["scores"]]
    if not values:
        return "–"
    interval = runs[0]["intervals"].get(metric)
    if len(values) == 1 and interval and metric == "CIDEr-D":
        return f"{values[0]:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return mean_and_range(values, 1)


def flickr8k(rows: Sequence[Row]) -> list[str]:
    """All runs on Flickr8k's dev split."""
    head = ("recipe", "features", "search", "loss", "perplexity", "accuracy", *METRICS, "captions/s", "training, min")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    wanted = [r for r in rows if r["data"]["dataset"].startswith("flickr8k") and r["data"]["split"] == "val"]
    for runs in sorted(same_but_for_seeds(wanted), key=lambda runs: (named(runs[0]), told_search(runs[0]))):
        validation = [row["validation"] for row in runs]
        minutes = [row["training_seconds"] / 60 for row in runs if row["training_seconds"]]
        seeds = f" × {len(runs)} seeds" if len(runs) > 1 else ""
        cells = [
            f"{named(runs[0])}{seeds}",
            runs[0]["encoder"],
            told_search(runs[0]),
            mean_and_range([v["val/loss"] for v in validation], 3),
            mean_and_range([v["val/perplexity"] for v in validation], 1),
            mean_and_range([v["val/accuracy"] for v in validation], 3),
            *(scored(runs, metric) for metric in METRICS),
            mean_and_range([row["captions_per_second"] for row in runs], 0),
            mean_and_range(minutes, 0) if minutes else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def flickr8k_searches(rows: Sequence[Row]) -> list[str]:
    """CIDEr-D of every recipe on Flickr8k's dev split, by how captions were searched for."""
    wanted = [r for r in rows if r["data"]["dataset"].startswith("flickr8k") and r["data"]["split"] == "val"]
    stored = ("encoder.grid_side", "features.dtype")
    wanted = [r for r in wanted if all(change.startswith(stored) for change in changed(r))]
    searches = ("greedy", "beam 3", "beam 3, length penalty 1")
    found: dict[tuple[str, ...], dict[str, Runs]] = {}
    for runs in same_but_for_seeds(wanted):
        first = runs[0]
        model = (named(first), first["encoder"], first["config_sha256"], str(first["data"]))
        found.setdefault(model, {})[told_search(first)] = runs

    def best(cells: Mapping[str, Runs]) -> float:
        return max(sum(row["scores"]["CIDEr-D"] for row in runs) / len(runs) for runs in cells.values())

    head = ("recipe", "features", *(f"CIDEr-D, {search}" for search in searches))
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for (name, encoder, *_), cells in sorted(found.items(), key=lambda item: -best(item[1])):
        scores = [scored(cells[search], "CIDEr-D") if search in cells else "–" for search in searches]
        lines.append("| " + " | ".join([name, encoder, *scores]) + " |")
    return lines


def flickr8k_reinforcement(rows: Sequence[Row]) -> list[str]:
    """What reinforcement adds to the model of the same recipe, features and seed, from which it starts."""
    prefix = "flickr8k_self_critical:"
    wanted = [r for r in rows if r["data"]["dataset"].startswith("flickr8k") and r["data"]["split"] == "val"]

    def model(row: Row) -> tuple[str, ...]:
        return named(row), row["encoder"], str(row["data"]), str(row["seeds"]), told_search(row)

    newest = {model(row): row for row in wanted}
    head = ("start", "changes of the recipe", "search", "CIDEr-D", "gain", "dangling ends, %", "repetition, %", "words")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for _, after in sorted(newest.items(), key=lambda item: item[0]):
        start = recipe_of(after).removeprefix(prefix)
        before = newest.get((f"`{start}`", *model(after)[1:]))
        if start == recipe_of(after) or before is None:
            continue
        scores = [100 * row["scores"]["CIDEr-D"] for row in (before, after)]
        health = [
            f"{scale * before['health'][key]:.1f} → {scale * after['health'][key]:.1f}"
            for key, scale in (("dangling_end", 100), ("repetition", 100), ("mean_length", 1))
        ]
        cells = [f"`{start}`, seed {after['seeds'][0]}", ", ".join(changed(after)) or "–", told_search(after)]
        cells += [f"{scores[0]:.1f} → {scores[1]:.1f}", f"{scores[1] - scores[0]:+.1f}", *health]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "flickr8k": flickr8k,
    "flickr8k_searches": flickr8k_searches,
    "flickr8k_reinforcement": flickr8k_reinforcement,
}


def with_tables(text: str, rows: Sequence[Row]) -> str:
    """Return a document with its tables made anew."""

    def make(match: re.Match) -> str:
        return f"{match[1]}\n" + "\n".join(TABLES[match[2]](rows)) + f"\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end of table -->)", make, text, flags=re.DOTALL)


def main() -> None:
    """Write the tables into all documents."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = read_ledger(LEDGER)
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(), rows))


if __name__ == "__main__":
    main()
