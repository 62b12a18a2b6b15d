"""The model card: a README.md beside the weights that says what a model is, how good it is, and what it cannot do.

Its head is the metadata that Hugging Face's hub reads (https://huggingface.co/docs/hub/model-cards), its text is for
people. It is made of what the model directory says and, once it was evaluated, of the evaluations' metrics.json.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "CIDEr-D", "SPICE")
_HEALTH = {"repetition": "repeat a phrase", "unknown_word": "have an unknown word", "dangling_end": "end dangling"}


def model_card(
    config: Mapping[str, Any],
    changes: Mapping[str, Any],
    encoder: Mapping[str, Any] | None,
    num_parameters: int,
    num_words: int,
    scores: Mapping[str, float],
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write a model card.

    Args:
        config: of the run, as model.json has it.
        changes: what it changes of the defaults, by `section.field`.
        encoder: the encoder's architecture, None for a model of imported features.
        num_parameters: of decoder and encoder.
        num_words: entries of the vocabulary.
        scores: of the validation that chose the model, and its `step`.
        evaluations: contents of metrics.json of this model.
    """
    dataset, recipe = config["dataset"]["name"], config["recipe"] or "a recipe of one's own"
    head = {
        "library_name": "capjax",
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", "jax", "flax", config["decoder"]["name"]],
        "model-index": [{"name": recipe, "results": [_result(evaluation) for evaluation in evaluations]}],
    }
    if not evaluations:  # a result without metrics is none
        del head["model-index"]
    sees = f"Inception V3 ({encoder['source']})" if encoder else "features made elsewhere, and cannot look at photos"
    if encoder and config["encoder"]["endpoint"]:
        sees += f" up to {config['encoder']['endpoint']}"
    known = f"its training captions (those that occur {config['vocabulary']['min_count']} times or oftener)"
    if config["train"]["init_from"]:
        known = "the model that its training began with"
    lines = [
        "---",
        # JSON is YAML, and quotes what must be quoted.
        *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()),
        "---",
        "",
        f"# {recipe}: images to sentences",
        "",
        f"A captioner made with capjax: the decoder `{config['decoder']['name']}` writes a caption word by word; it "
        f"sees {sees}. {num_parameters:,} parameters, a vocabulary of {num_words:,}.",
        "",
        "```bash",
        f"capjax {'caption --model=DIR photo.jpg' if encoder else 'evaluate --model=DIR --features_dir=FEATURES'}",
        "```",
        "",
        "## What it learnt from",
        "",
        f"The split `{config['dataset']['train_split']}` of `{dataset}`, {int(scores.get('step', 0)):,} steps; the "
        f"split `{config['dataset']['val_split']}` chose the step. What the recipe changes of capjax' defaults:",
        "",
        *(f"- `{name}`: {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(changes.items())),
        "",
        "## How good it is",
        "",
        f"Validation, captions decoded greedily, unscaled: {_told(scores)}.",
        "",
    ]
    for evaluation in evaluations:
        lines += _section(evaluation)
    if not evaluations:
        lines += ["It was not evaluated further: `capjax evaluate`, then `capjax model card`, put scores here.", ""]
    lines += [
        "## What it cannot do",
        "",
        f"It knows the words of {known}, and says what is probable after pictures like those: what is rare or new is "
        "named wrongly, with as much confidence. Captioners of this kind are unreliable about counts, left and right, "
        "written text and who somebody is. Prejudices of the captions it learnt from are its own. Data set and encoder "
        "have licences of their own.",
        "",
    ]
    return "\n".join(lines)


def _result(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    settings = evaluation["settings"]
    return {
        "task": {"type": "image-to-text"},
        "dataset": {"name": settings["dataset"], "type": settings["dataset"], "split": settings["split"]},
        "metrics": [
            {"type": name.lower(), "name": name, "value": round(100 * evaluation[name], 2)}
            for name in _METRICS
            if name in evaluation
        ],
    }


def _section(evaluation: Mapping[str, Any]) -> list[str]:
    settings, intervals = evaluation["settings"], evaluation["intervals"]
    search = settings["decoder"]
    rows = []
    for name in _METRICS:
        if name in evaluation:
            low, high = intervals.get(name, (None, None))
            interval = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append(f"| {name} | {100 * evaluation[name]:.1f} | {interval} |")
    ailing = ", ".join(f"{100 * evaluation['health'][key]:.1f} % {text}" for key, text in _HEALTH.items())
    return [
        f"### {settings['dataset']}, {settings['split']}: {settings['num_images']:,} images, {search['method']}"
        + (f" with {search['beam_size']} beams" if search["method"] == "beam" else ""),
        "",
        f"| metric, × 100 | score | {100 * settings['confidence']:g} % interval |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"Of the captions, {ailing}. Scored as the COCO scorer does, by `{evaluation['command']}`.",
        "",
    ]


def _told(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('val/')} {value:.4g}" for name, value in scores.items() if name != "step")
