"""The job `capjax model show | card DIR`: says what a model directory holds, and writes its model card.

capjax model show runs/reference/model
capjax model card runs/reference/model --evaluation=runs/reference/evaluation-test
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from capjax import config as configuration
from capjax.captioning.loaded_model import LoadedModel, load_model
from capjax.errors import CapjaxError
from capjax.host.disk import local_path, write_atomically
from capjax.hub import is_remote
from capjax.report import model_card
from capjax.report.ledger import asked_of
from capjax.text.vocabulary import is_unused
from capjax.training.train_state import num_parameters, parameter_overview


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `capjax model`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print what a model directory holds")
    card = actions.add_parser("card", help="write README.md beside the weights: what it is, how good, its limits")
    for action in (show, card):
        action.add_argument("model", metavar="DIR", help="model directory")
    card.add_argument(
        "--evaluation",
        type=local_path,
        action="append",
        help="folder that `capjax evaluate` wrote; repeatable (default: every DIR/../evaluation-*)",
    )


def run(args: argparse.Namespace) -> int:
    """Show a model, or write its card."""
    if args.action == "card" and is_remote(args.model):
        raise CapjaxError(f"expected a folder to write the card to, got {args.model}; a copy of yours is needed")
    model = load_model(args.model)
    if args.action == "show":
        print(overview(model))
        return 0
    folder = pathlib.Path(model.path)
    evaluations, others = [], []
    for path in args.evaluation or _evaluations_beside(model):
        if not args.evaluation and not (path / "metrics.json").exists():
            print(f"left out {path}: it has no metrics.json, as of captions without references or a run that was ended")
            continue
        metrics = read_metrics(path / "metrics.json")
        is_of_it = metrics["models"] == [model.summary]
        (evaluations if is_of_it else others).append((path, metrics))
    if others and args.evaluation:
        raise CapjaxError(
            f"expected an evaluation of {args.model}, {others[0][0]} is one of another model; run capjax evaluate again"
        )
    write_atomically(folder / "README.md", card_of(model, [metrics for _, metrics in evaluations]))
    print(f"wrote {folder / 'README.md'}, with {len(evaluations)} evaluation(s)")
    for path, _ in others:
        print(f"left out {path}: it is of another model, or of this one at another step")
    return 0


def _evaluations_beside(model: LoadedModel) -> list[pathlib.Path]:
    """List the evaluations beside a model directory, and beside what it links to."""
    places = {folder.resolve() for folder in (model.workdir, pathlib.Path(model.path).resolve().parent)}
    return sorted(path for place in places for path in place.glob("evaluation-*"))


def overview(model: LoadedModel) -> str:
    """Say in some lines what a model is."""
    config, vocabulary = model.config, model.vocabulary
    encoder = model.encoder
    sees = "features made elsewhere: it cannot caption photos"
    if encoder:
        side = encoder.config.image_size
        sees = f"photos of {side} px, through Inception V3 to {encoder.config.final_endpoint} ({encoder.config.source})"
    words = [word for word in vocabulary.words[4:] if not is_unused(word)]
    files = sorted(path for path in pathlib.Path(model.path).iterdir() if path.is_file())
    rows = {
        "recipe": config.recipe or "one of its own",
        "decoder": config.decoder.name,
        "sees": sees,
        "speaks": f"{len(words):,} words ({vocabulary.tokenizer}): {', '.join(words[:8])} …",
        "learnt from": f"{config.dataset.name}, {config.dataset.train_split}; validated on {config.dataset.val_split}",
        "changes": ", ".join(f"{name} {value}" for name, value in asked_of(configuration.changes(config)).items()),
        "search": model.search.method + f", {model.search.beam_size} beam(s)" * (model.search.method == "beam"),
        "validation": ", ".join(f"{name} {value:.4g}" for name, value in model.scores.items()),
        "parameters": f"{num_parameters(model.variables['params']):,}",
        "files": ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in files),
    }
    width = max(map(len, rows))
    table = "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items() if value)
    return f"{table}\n\n{parameter_overview(model.variables['params'])}"


def card_of(model: LoadedModel, evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Write the card of a model."""
    return model_card(
        configuration.to_dict(model.config),
        asked_of(configuration.changes(model.config)),
        dataclasses.asdict(model.encoder.config) if model.encoder else None,
        num_parameters(model.variables["params"]),
        len(model.vocabulary),
        model.scores,
        evaluations,
    )


def read_metrics(path: pathlib.Path) -> dict[str, Any]:
    """Read the metrics.json of an evaluation.

    Raises:
        CapjaxError: if it is none, or of a capjax that did not note the model.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        _ = metrics["models"], metrics["command"], metrics["settings"]["dataset"], metrics["health"]["repetition"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CapjaxError(
            f"expected what `capjax evaluate` writes in {path}, got something else ({type(error).__name__}: {error})"
        ) from None
    return metrics
