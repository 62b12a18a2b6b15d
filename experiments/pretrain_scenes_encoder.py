"""Pretrain the small Inception V3 that ships with capjax for the embedded dataset `scenes`.

    python experiments/pretrain_scenes_encoder.py --out=scenes_encoder.safetensors

What ImageNet weights are for COCO, these weights are for scenes: an encoder that can see, trained on another task than
captioning, and on pictures of its own that no split of the dataset contains. It never sees a picture with a held-out
pair of colour and shape.

The task is to say what a picture shows, part by part, without words. From the pooled features, the only thing that the
reference decoder gets, linear heads predict the background, the arrangement and, for each group of shapes in reading
order, its count, colour, shape, size, pattern and place. From the grid after `mixed2`, linear heads predict what lies
at each position, which teaches the lower layers quickly. Colour and shape have separate heads everywhere, so nothing
rewards knowing which pairs exist. The heads are thrown away afterwards.
"""

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float
from tqdm import tqdm

from capjax.data.image_ops import Preprocessing, load_image
from capjax.data.scene_layout import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MAX_COUNT,
    MAX_GROUPS,
    PATTERNS,
    SHAPES,
    SIZES,
    Scene,
    sample_scene,
)
from capjax.data.scenes import encode_picture
from capjax.pretrained.encoder_file import EncoderConfig, save_encoder

ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "pattern": PATTERNS}
STEM_STRIDE = 8
"""Pixels between neighbouring positions of the grid of `mixed2`."""

Labels = dict[str, np.ndarray]
Batch = tuple[np.ndarray, Labels]


def make_labels(scene: Scene, image_size: int) -> Labels:
    """Turn a scene into the targets of all heads; -1 where there is nothing to predict.

    Per group: count (0 for no group) and attributes [G], place [G, 2], seen (1 if the pair is not held out) [G]. Per
    position of the grid after `mixed2`: cell_<attribute> [P], where class 0 of cell_colour means that nothing is there.
    """
    labels = {
        "background": np.int32(BACKGROUNDS.index(scene.background)),
        "arrangement": np.int32(ARRANGEMENTS.index(scene.arrangement)),
        "count": np.zeros(MAX_GROUPS, np.int32),
        "place": np.full((MAX_GROUPS, 2), -1, np.float32),
        "held_out": np.zeros(MAX_GROUPS, bool),
    }
    num_cells = (((image_size - 3) // 2 - 3) // 2 - 3) // 2  # the stem's unpadded convolutions and pools
    centres = (np.arange(num_cells) * STEM_STRIDE + (image_size - (num_cells - 1) * STEM_STRIDE) / 2) / image_size
    labels["cell_colour"] = np.zeros((num_cells, num_cells), np.int32)
    for name in ATTRIBUTES:
        labels[name] = np.full(MAX_GROUPS, -1, np.int32)
        if name != "colour":
            labels["cell_" + name] = np.full((num_cells, num_cells), -1, np.int32)
    # The smaller shape of a nested pair comes first, and lies on top.
    for i, group in reversed(list(enumerate(scene.groups))):
        classes = {name: values.index(getattr(group, name)) for name, values in ATTRIBUTES.items()}
        labels["count"][i] = len(group.members)
        labels["place"][i] = np.mean([(m.x, m.y) for m in group.members], axis=0)
        labels["held_out"][i] = group.kind in HELD_OUT
        for name, index in classes.items():
            labels[name][i] = index
        for m in group.members:
            distance = np.hypot(centres[None, :] - m.x, centres[:, None] - m.y)
            covered = distance <= max(0.75 * m.radius, 0.06)
            for name, index in classes.items():
                labels["cell_" + name][covered] = index + (name == "colour")
    return {name: value.reshape(-1) if name.startswith("cell") else value for name, value in labels.items()}


def make_batch(seeds: list[str], image_size: int, held_out: bool) -> Batch:
    """Render one scene for each seed, pass it through a JPEG file and the preprocessing of training, and label it."""
    scenes = [sample_scene(Random(seed), held_out=held_out) for seed in seeds]
    images = [load_image(encode_picture(scene), Preprocessing(image_size=image_size)) for scene in scenes]
    labels = [make_labels(scene, image_size) for scene in scenes]
    return np.stack(images), {name: np.stack([label[name] for label in labels]) for name in labels[0]}


def batches(
    pool: Any, purpose: str, num: int, batch_size: int, image_size: int, held_out: bool = False
) -> Iterator[Batch]:
    """Yield `num` batches of fresh scenes, rendered ahead in worker processes."""
    seeds = ([f"{purpose}/{step}/{i}" for i in range(batch_size)] for step in range(num))
    make = functools.partial(make_batch, image_size=image_size, held_out=held_out)
    yield from ahead(pool, make, seeds)


def ahead(pool: Any, make: Any, seeds: Iterator[list[str]], depth: int = 8) -> Iterator[Batch]:
    """Map over a pool in order, keeping at most `depth` results waiting."""
    waiting = []
    for item in seeds:
        waiting.append(pool.apply_async(make, (item,)))
        if len(waiting) > depth:
            yield waiting.pop(0).get()
    for result in waiting:
        yield result.get()


class Heads(nn.Module):
    """One linear layer per question, on the pooled features or, for `cell_*`, on the grid after `mixed2`."""

    @nn.compact
    def __call__(self, pooled: Float[Array, "N F"], cells: Float[Array, "N P f"]) -> dict[str, Float[Array, "..."]]:
        out = {
            "background": nn.Dense(len(BACKGROUNDS), name="background")(pooled),
            "arrangement": nn.Dense(len(ARRANGEMENTS), name="arrangement")(pooled),
            "place": nn.DenseGeneral((MAX_GROUPS, 2), name="place")(pooled),
            "count": nn.DenseGeneral((MAX_GROUPS, MAX_COUNT + 1), name="count")(pooled),
        }
        for name, values in ATTRIBUTES.items():
            out[name] = nn.DenseGeneral((MAX_GROUPS, len(values)), name=name)(pooled)
            out["cell_" + name] = nn.Dense(len(values) + (name == "colour"), name="cell_" + name)(cells)
        return out


def multi_task_loss(out: dict[str, Array], labels: dict[str, Array], cell_weight: float) -> Float[Array, ""]:
    """Sum the mean cross-entropies of all heads, and the squared error of the places."""
    loss = jnp.float32(0)
    for name, logits in out.items():
        if name == "place":
            known = labels["count"] > 0
            loss += 10 * jnp.sum(jnp.sum((logits - labels["place"]) ** 2, axis=-1) * known) / jnp.sum(known)
            continue
        known = labels[name] >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels[name], 0))
        weight = cell_weight if name.startswith("cell") else 1.0
        loss += weight * jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)
    return loss


def evaluate(predict: Any, batches: list[Batch]) -> dict[str, float]:
    """Return the share of right answers per head over groups that exist; `pair_held_out` counts held-out groups only.

    `pair` is colour and shape of a group both right, `all` is every answer about a picture right.
    """
    right: dict[str, list[np.ndarray]] = {}
    for images, labels in batches:
        out = {name: np.asarray(value) for name, value in predict(images).items()}
        exists = labels["count"] > 0
        hits = {name: out[name].argmax(-1) == labels[name] for name in out if name != "place"}
        hits["pair"] = hits["colour"] & hits["shape"]
        everything = hits["background"] & hits["arrangement"] & hits["count"].all(1)
        for name in ATTRIBUTES:
            everything &= (hits[name] | ~exists).all(1)
        scores = {"background": hits["background"], "arrangement": hits["arrangement"], "count": hits["count"].all(1)}
        scores |= {name: hits[name][exists] for name in (*ATTRIBUTES, "pair")}
        scores["pair_held_out"] = hits["pair"][labels["held_out"]]
        scores["cell_shape"] = hits["cell_shape"][labels["cell_shape"] >= 0]
        scores["all"] = everything
        for name, score in scores.items():
            right.setdefault(name, []).append(score)
    joined = {name: np.concatenate(values) for name, values in right.items()}
    return {name: round(float(values.mean()), 4) for name, values in joined.items() if values.size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="scenes_encoder.safetensors", help="the encoder file to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--depth_multiplier", type=float, default=0.25)
    parser.add_argument("--min_depth", type=int, default=8)
    parser.add_argument("--final_endpoint", default="mixed5")
    parser.add_argument("--image_size", type=int, default=80)
    parser.add_argument("--eval_every", type=int, default=250)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    args = parser.parse_args()

    config = EncoderConfig(
        depth_multiplier=args.depth_multiplier,
        min_depth=args.min_depth,
        final_endpoint=args.final_endpoint,
        image_size=args.image_size,
        source="pretrained on scenes by experiments/pretrain_scenes_encoder.py",
    )
    encoder, heads = config.build(), Heads()

    def forward(params: Any, statistics: Any, images: Array, train: bool) -> tuple[dict[str, Array], Any]:
        features, state = encoder.apply(
            {"params": params["encoder"], "batch_stats": statistics},
            images,
            train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "mixed2",
        )
        (cells,) = state["intermediates"]["mixed2"]["__call__"]
        cells = cells.reshape(cells.shape[0], -1, cells.shape[-1])
        return heads.apply({"params": params["heads"]}, features.pooled, cells), state["batch_stats"]

    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, args.steps // 20, args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=1e-4))

    @jax.jit
    def init(key: Array) -> tuple[Any, Any, Any]:
        images = jnp.zeros((1, args.image_size, args.image_size, 3), jnp.uint8)
        features, variables = encoder.init_with_output(
            key, images, capture_intermediates=lambda module, _: module.name == "mixed2"
        )
        (cells,) = variables["intermediates"]["mixed2"]["__call__"]
        head_params = heads.init(key, features.pooled, cells.reshape(1, -1, cells.shape[-1]))["params"]
        params = {"encoder": variables["params"], "heads": head_params}
        return params, variables["batch_stats"], optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params: Any, statistics: Any, optimizer_state: Any, images: Array, labels: dict[str, Array]) -> Any:
        def loss_fn(params: Any) -> tuple[Array, Any]:
            out, new_statistics = forward(params, statistics, images, train=True)
            return multi_task_loss(out, labels, cell_weight=1.0), new_statistics

        (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), statistics, optimizer_state, loss

    predict = jax.jit(lambda params, statistics, images: forward(params, statistics, images, train=False)[0])

    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        seen = list(batches(pool, "validation", 4, 128, args.image_size))
        unseen = list(batches(pool, "held out", 4, 128, args.image_size, held_out=True))
        params, statistics, optimizer_state = init(jax.random.key(0))
        losses, start = [], time.time()
        training = batches(pool, "pretraining", args.steps, args.batch_size, args.image_size)
        for step, (images, labels) in enumerate(tqdm(training, total=args.steps, disable=None), start=1):
            params, statistics, optimizer_state, loss = train_step(params, statistics, optimizer_state, images, labels)
            losses.append(loss)
            if step % args.eval_every == 0 or step == args.steps:
                report = {"step": step, "minutes": round((time.time() - start) / 60, 1), "loss": float(np.mean(losses))}
                for name, pictures in (("seen", seen), ("held_out", unseen)):
                    report[name] = evaluate(functools.partial(predict, params, statistics), pictures)
                tqdm.write(json.dumps(report))
                losses.clear()
                variables = {"params": params["encoder"], "batch_stats": statistics}
                save_encoder(args.out, config, variables, storage_dtype=np.float16)


if __name__ == "__main__":
    main()
