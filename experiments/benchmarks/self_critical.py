"""What a step of self-critical training spends its time on, and the reward against the published scorer.

    python experiments/benchmarks/self_critical.py [--captions=FILE] --out=experiments/results/self_critical.md

The whole compiled step, and its parts as programs of their own: drawing captions, and the reward of what was drawn.
The published scorer (`pycocoevalcap`) gets the same captions as strings, already tokenised, as reinforcement in PyTorch
calls it: its document frequencies are counted once, before the clock starts. Captions are those of the embedded data
set `scenes`, or of a file in the layout of COCO.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from random import Random
from typing import Any

import jax
import numpy as np
import optax
from device import busiest
from pycocoevalcap.cider.cider_scorer import CiderScorer
from timing import command_line, told

from capjax.data.scenes.builder import scene_of
from capjax.data.scenes.captions import describe
from capjax.data.tokenized_captions import tokenized_for_this_process
from capjax.metrics import device_scores
from capjax.models import Captioner, build_decoder
from capjax.sharding import make_mesh, replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.training.scst_step import RewardTables, SelfCriticalSettings, draw_captions, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training_run.objectives.packed_references import pack_references
from capjax.types import SPECIAL_IDS, CaptionRecord, Features

NUM_POSITIONS, NUM_FEATURES = 36, 512


def read_captions(path: str | None) -> list[list[str]]:
    """Return the captions of each image."""
    if path is None:
        return [list(describe(scene_of(i), Random(i))) for i in range(4000)]
    by_image: dict[int, list[str]] = {}
    for row in json.loads(pathlib.Path(path).read_text())["annotations"]:
        by_image.setdefault(row["image_id"], []).append(row["caption"])
    return list(by_image.values())


def milliseconds(call: Callable[[], Any], rounds: int) -> list[float]:
    """Time a call that compiles the first time."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", help="captions in the layout of COCO; without it those of scenes")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12, help="0 compiles everything and times nothing")
    parser.add_argument("--profile", action="store_true", help="list what the step spends its time on")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()

    captions = read_captions(args.captions)
    vocabulary = Vocabulary.build((c for of_image in captions for c in of_image), "words", 5)
    records = [CaptionRecord(i, "", tuple(of_image)) for i, of_image in enumerate(captions)]
    packed = pack_references(tokenized_for_this_process(records, "words"), vocabulary)
    settings = SelfCriticalSettings(num_samples=args.samples)
    decoder = build_decoder(
        "att2in", vocab_size=len(vocabulary), hidden_size=args.hidden_size, embed_size=args.hidden_size
    )
    model, mesh, optimizer = Captioner(decoder), make_mesh(), optax.adam(1e-5)
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(args.images, NUM_POSITIONS, NUM_FEATURES)).astype(np.float32)
    tokens = np.full((args.images, 20), SPECIAL_IDS.pad, np.int32)
    for row, of_image in zip(tokens, captions, strict=False):
        ids = vocabulary.encode(of_image[0])[:20]
        row[: len(ids)] = ids
    batch = {
        "features": Features(grid.mean(axis=1), grid),
        "tokens": tokens,
        "mask": tokens[:, 1:] != SPECIAL_IDS.pad,
        "valid": np.ones(args.images, bool),
        **packed.of_images(range(args.images)),
    }
    variables = jax.jit(model.init)(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch["features"]), tokens[:1, 1:])
    tables = RewardTables(packed.trie, packed.number_of_token, np.zeros(len(vocabulary), bool))
    batch, tables = shard_batch(batch, mesh), replicate(tables, mesh)
    state = replicate(TrainState.create(variables, optimizer), mesh)
    key = jax.random.key(0)

    @jax.jit
    def draw(variables: Any, batch: Any, tables: RewardTables, keys: Any) -> Any:
        inputs = (batch["features"], batch["references"], batch["reference_norms"], keys, tables, settings)
        return draw_captions(model, variables, *inputs).tokens  # XLA leaves out the reward that nobody reads

    @jax.jit
    def reward(tokens: Any, batch: Any, tables: RewardTables) -> Any:
        words = tables.number_of_token[tokens]
        matches = device_scores.match(words, batch["references"])
        norms = batch["reference_norms"]
        return device_scores.cider_d(words, matches, batch["references"], norms, tables.trie)

    keys = jax.random.split(key, args.images)
    drawn = draw(variables, batch, tables, keys)
    times = {"drawing": milliseconds(lambda: draw(variables, batch, tables, keys), args.rounds)}
    times["reward"] = milliseconds(lambda: reward(drawn, batch, tables), args.rounds)
    step = jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings)
    box = [state]

    def whole() -> Any:
        box[0], metrics = step(box[0], batch, tables, key)
        return jax.block_until_ready(metrics["loss"])

    times["whole step"] = milliseconds(whole, args.rounds)
    if not args.rounds:
        return

    def say(ids: Any) -> str:
        words = [vocabulary.words[t] for t in ids if t != SPECIAL_IDS.pad]
        return " ".join("endendend" if word == "<end>" else word for word in words)

    corpus = CiderScorer(n=4, sigma=6.0)
    references = [[" ".join([*vocabulary.tokenize(c), "endendend"]) for c in of_image] for of_image in captions]
    for of_image in references:
        corpus += ("", of_image)
    corpus.compute_doc_freq()
    said = [[say(ids) for ids in of_image] for of_image in np.asarray(drawn)]

    def published() -> list[float]:
        scorer = CiderScorer(n=4, sigma=6.0)
        for of_image, hypotheses in zip(references, said, strict=False):
            for hypothesis in hypotheses:
                scorer += (hypothesis, of_image)
        scorer.document_frequency, scorer.ref_len = corpus.document_frequency, np.log(float(len(references)))
        return scorer.compute_cider()

    times["published scorer"] = milliseconds(published, max(2, args.rounds // 4))
    share = statistics.median(times["reward"]) / statistics.median(times["whole step"])
    ratio = statistics.median(times["published scorer"]) / statistics.median(times["reward"])
    source = pathlib.Path(args.captions).name if args.captions else "scenes"
    lines = [
        "# A step of self-critical training",
        "",
        f"    {command_line()}",
        "",
        f"Att2in, {args.hidden_size} units, vocabulary of {len(vocabulary):,}, {args.images} images × {args.samples} "
        f"samples of at most 20 words, grid of {NUM_POSITIONS} × {NUM_FEATURES}; references of {len(captions):,} "
        f"images ({source}), {sum(map(len, packed.trie.idf)):,} n-grams. {jax.device_count()} × "
        f"{jax.devices()[0].device_kind}, {platform.machine()}; jax {jax.__version__}; {args.rounds} rounds, "
        "median [min–max].",
        "",
        "| part | ms |",
        "| --- | --- |",
        *(f"| {name} | {told(values, 1)} |" for name, values in times.items()),
        "",
        f"The reward takes {100 * share:.1f} % of the step; the published scorer, given tokenised strings and document "
        f"frequencies, takes {ratio:.0f} × as long as the reward.",
    ]
    if args.profile:
        lines += ["", "## What the step spends its time on", "", "| operation | ms | share |", "| --- | --- | --- |"]
        lines += [f"| {name} | {spent:.2f} | {share:.0%} |" for name, spent, share in busiest(whole)]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
