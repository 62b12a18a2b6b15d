"""Pretrain the small Inception V3 that ships with capjax for the embedded dataset `scenes`.

    python experiments/pretrain_scenes_encoder.py --out=scenes_encoder.safetensors

What ImageNet weights are for COCO, these weights are for scenes: an encoder that can see, trained on another task than
captioning, and on pictures of its own that no split of the dataset contains. It never sees a picture with a held-out
combination of colour, shape and time of day, nor one with a held-out pair of colour and shape.

In half of the pictures the shapes have colours without a name, far from those that captions name, and the question of
colour is left out. So a shape is learnt apart from the six colours and their backgrounds: otherwise a network takes
"red by day" for evidence against a star, since red stars by day are held out.

The task is to say what a picture shows, part by part, without words. From the pooled features, the only thing that the
reference decoder gets, linear heads predict the background, the arrangement and, for each group of shapes in reading
order, its count, colour, shape, size, pattern and place. From the grid after `mixed2`, linear heads predict what lies
at each position, which teaches the lower layers quickly. The heads are thrown away afterwards.

Two phases make it affordable on a CPU, where nearly all the time goes into the gradient of the first convolutions: the
whole network sees each picture a few times, then the stem is frozen, its outputs are kept, and the blocks above go over
them many times.
"""

import argparse
import colorsys
import functools
import io
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float
from PIL import Image
from tqdm import tqdm

from capjax.data.scenes.layout import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    MAX_COUNT,
    MAX_GROUPS,
    PATTERNS,
    SHAPES,
    SIZES,
    Colour,
    HeldOut,
    Scene,
    is_held_out,
    sample_scene,
)
from capjax.data.scenes.rendering import PALETTE, render_scene
from capjax.images import Preprocessing, decode_image, preprocess
from capjax.models.inception_v3 import InceptionV3, scale_images
from capjax.pretrained.encoder_file import EncoderConfig, save_encoder
from capjax.pretrained.random_encoder import random_encoder

ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "pattern": PATTERNS}
LABEL_SMOOTHING = 0.1
NAMELESS_SHARE = 0.5
"""Of the training pictures, whose shapes have colours without a name."""
NAMELESS_DISTANCE = 70
"""From every colour that has one, in RGB."""
STEM_STRIDE = 8
"""Pixels between neighbouring positions of the grid of `mixed2`."""

Labels = dict[str, np.ndarray]
EVAL_BATCH = 250
NUM_REPORTS = 6


def make_labels(scene: Scene, image_size: int) -> Labels:
    """Turn a scene into the targets of all heads; -1 where there is nothing to predict.

    Per group: count (0 for no group) and attributes [G], place [G, 2], and whether it is held out [G]. Per
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
        labels["held_out"][i] = is_held_out(group.kind, scene.background, "both")
        for name, index in classes.items():
            labels[name][i] = index
        for m in group.members:
            distance = np.hypot(centres[None, :] - m.x, centres[:, None] - m.y)
            covered = distance <= max(0.75 * m.radius, 0.06)
            for name, index in classes.items():
                labels["cell_" + name][covered] = index + (name == "colour")
    return {name: value.reshape(-1) if name.startswith("cell") else value for name, value in labels.items()}


def nameless_palette(rng: Random) -> dict[Colour, tuple[int, int, int]]:
    """Draw a colour in place of each of the six, far from all of them."""
    palette: dict[Colour, tuple[int, int, int]] = {}
    while len(palette) < len(COLOURS):
        red, green, blue = (round(255 * x) for x in colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.random()))
        if all(math.dist((red, green, blue), named) > NAMELESS_DISTANCE for named in PALETTE.values()):
            palette[COLOURS[len(palette)]] = red, green, blue
    return palette


def render_labelled(seeds: list[str], image_size: int, check: HeldOut | None) -> tuple[np.ndarray, Labels]:
    """Render one scene for each seed, pass it through a JPEG file and the preprocessing of training, and label it.

    Args:
        seeds: of the scenes.
        image_size: of the encoder's input.
        check: what of the held-out each picture shows; None for pictures to train on, half of them without names for
            their colours.
    """
    images, labels = [], []
    for seed in seeds:
        rng = Random(seed)
        palette = PALETTE
        if check is None and rng.random() < NAMELESS_SHARE:
            palette = nameless_palette(rng)
        scene = sample_scene(rng, held_out=check in ("combinations", "pairs"), what=check or "both")
        buffer = io.BytesIO()
        Image.fromarray(render_scene(scene, palette=palette)).save(buffer, "JPEG", quality=92, subsampling="4:4:4")
        images.append(preprocess(decode_image(buffer.getvalue()), Preprocessing(image_size=image_size)))
        labels.append(make_labels(scene, image_size))
        if palette is not PALETTE:
            labels[-1]["colour"][:] = -1
            labels[-1]["cell_colour"] = np.where(labels[-1]["cell_colour"] > 0, -1, 0).astype(np.int32)
    return np.stack(images), stack_labels(labels)


def stack_labels(labels: list[Labels], join: Callable[[list[np.ndarray]], np.ndarray] = np.stack) -> Labels:
    """Join the labels of several pictures, or with `np.concatenate` those of several parts."""
    return {name: join([label[name] for label in labels]) for name in labels[0]}


def render_pictures(
    purpose: str, num: int, image_size: int, num_workers: int, check: HeldOut | None = None
) -> tuple[np.ndarray, Labels]:
    """Render `num` scenes in several processes: images uint8 [num, S, S, 3] and their labels."""
    parts = np.array_split([f"{purpose}/{i}" for i in range(num)], max(num // 250, 1))
    render = functools.partial(render_labelled, image_size=image_size, check=check)
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        results = list(tqdm(pool.imap(render, map(list, parts)), total=len(parts), desc=purpose, disable=None))
    images, labels = zip(*results, strict=True)
    return np.concatenate(images), stack_labels(list(labels), np.concatenate)


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
        targets = optax.smooth_labels(jax.nn.one_hot(labels[name], logits.shape[-1]), LABEL_SMOOTHING)
        losses = optax.softmax_cross_entropy(logits, targets)
        weight = cell_weight if name.startswith("cell") else 1.0
        loss += weight * jnp.sum(losses * known) / jnp.maximum(jnp.sum(known), 1)
    return loss


def evaluate(predict: Callable[[np.ndarray], dict[str, Array]], inputs: np.ndarray, labels: Labels) -> dict[str, float]:
    """Return the share of right answers per head over groups that exist; `pair_held_out` counts held-out groups only.

    `pair` is colour and shape of a group both right, `all` is every answer about a picture right.
    """
    parts = [predict(part) for part in np.split(inputs, len(inputs) // EVAL_BATCH)]
    out = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
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
    return {name: round(float(values.mean()), 4) for name, values in scores.items() if values.size}


def run_blocks(
    encoder: InceptionV3, x: Float[Array, "N H W C"], first: int, train: bool
) -> tuple[Float[Array, "N F"], Float[Array, "N P f"]]:
    """Run the encoder from block `first` (0 is the stem); return pooled features and the grid after `mixed2`."""
    for block in encoder.blocks[first:]:
        x = block(x, train)
        if block.name == "mixed2":
            cells = x.reshape(x.shape[0], -1, x.shape[-1])
    return x.mean(axis=(1, 2)), cells


def run_stem(encoder: InceptionV3, images: Array) -> Float[Array, "N h w f"]:
    """Run the stem alone, as at inference."""
    return encoder.blocks[0](scale_images(images), False)


def train_phase(
    encoder: InceptionV3,
    variables: dict[str, Any],
    inputs: np.ndarray,
    labels: Labels,
    *,
    first_block: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    cell_weight: float,
    report: Callable[[int, dict[str, Any], Callable[..., Any]], None],
) -> dict[str, Any]:
    """Train blocks `first_block` and above, and the heads.

    Args:
        variables: {"params": encoder parameters, "batch_stats": …, "heads": head parameters}.
        inputs: what block `first_block` reads: images uint8, or outputs of the stem.
        report: called with step, variables and `predict(inputs)`, now and then.
    """
    frozen = {name: variables["params"][name] for name in ("stem",) if first_block > 0}
    trained = {name: value for name, value in variables["params"].items() if name not in frozen}
    params, statistics = {"encoder": trained, "heads": variables["heads"]}, variables["batch_stats"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(200, num_steps // 10), num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=1e-4))
    optimizer_state = optimizer.init(params)

    def forward(params: Any, statistics: Any, x: Array, train: bool) -> tuple[dict[str, Array], Any]:
        x = scale_images(x) if first_block == 0 else x.astype(jnp.float32)
        (pooled, cells), state = encoder.apply(
            {"params": params["encoder"], "batch_stats": statistics},
            x,
            first_block,
            train,
            method=run_blocks,
            mutable=["batch_stats"],
        )
        return Heads().apply({"params": params["heads"]}, pooled, cells), state["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params: Any, statistics: Any, optimizer_state: Any, x: Array, labels: dict[str, Array]) -> Any:
        def loss_fn(params: Any) -> tuple[Array, Any]:
            out, new_statistics = forward(params, statistics, x, train=True)
            return multi_task_loss(out, labels, cell_weight), new_statistics

        (loss, new_statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), new_statistics, optimizer_state, loss

    predict = jax.jit(lambda params, statistics, x: forward(params, statistics, x, train=False)[0])
    losses = []
    progress = tqdm(shuffled(len(inputs), batch_size, num_steps), total=num_steps, disable=None)
    for step, rows in enumerate(progress, start=1):
        batch = {name: value[rows] for name, value in labels.items()}
        params, statistics, optimizer_state, loss = train_step(params, statistics, optimizer_state, inputs[rows], batch)
        losses.append(loss)
        if step % (num_steps // NUM_REPORTS) == 0 or step == num_steps:
            tqdm.write(f"step {step} loss {np.mean(losses):.4f}")
            losses.clear()
            variables = {"params": params["encoder"] | frozen, "batch_stats": statistics, "heads": params["heads"]}
            report(step, variables, functools.partial(predict, params, statistics))
    return variables


def shuffled(num_rows: int, batch_size: int, num_batches: int) -> Iterator[np.ndarray]:
    """Yield row numbers of batches, epoch after epoch in a new order; the rest of an epoch is dropped."""
    rng = np.random.default_rng(0)
    per_epoch = num_rows // batch_size
    for i in range(num_batches):
        if i % per_epoch == 0:
            order = rng.permutation(num_rows)
        start = i % per_epoch * batch_size
        yield order[start : start + batch_size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="scenes_encoder.safetensors", help="the encoder file to write")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--whole_epochs", type=float, default=1.5, help="passes of the whole network")
    parser.add_argument("--upper_epochs", type=float, default=10.0, help="passes with the stem frozen")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--depth_multiplier", type=float, default=0.25)
    parser.add_argument("--min_depth", type=int, default=8)
    parser.add_argument("--final_endpoint", default="mixed5")
    parser.add_argument("--image_size", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    args = parser.parse_args()

    config = EncoderConfig(
        depth_multiplier=args.depth_multiplier,
        min_depth=args.min_depth,
        final_endpoint=args.final_endpoint,
        image_size=args.image_size,
        source="pretrained on scenes by experiments/pretrain_scenes_encoder.py",
    )
    encoder = config.build()
    images, labels = render_pictures("pretraining", args.pictures, args.image_size, args.workers)
    checks = {
        name: render_pictures(name, 2 * EVAL_BATCH, args.image_size, args.workers, check)
        for name, check in (("seen", "both"), ("held_out", "combinations"), ("unseen_pairs", "pairs"))
    }
    start = time.time()

    def report(step: int, variables: dict[str, Any], predict: Callable[..., Any]) -> None:
        line: dict[str, Any] = {"minutes": round((time.time() - start) / 60, 1)}
        for name, (inputs, answers) in checks.items():
            line[name] = evaluate(predict, inputs, answers)
        tqdm.write(json.dumps(line))
        weights = {"params": variables["params"], "batch_stats": variables["batch_stats"]}
        save_encoder(args.out, config, weights, storage_dtype=np.float16)

    phase = functools.partial(train_phase, encoder, batch_size=args.batch_size, learning_rate=args.learning_rate)
    variables: dict[str, Any] = dict(random_encoder(config, seed=0))
    pooled, cells = jax.eval_shape(
        lambda: encoder.apply(variables, scale_images(images[:1]), 0, False, method=run_blocks)
    )
    heads = Heads().init(jax.random.key(0), jnp.zeros(pooled.shape), jnp.zeros(cells.shape))["params"]
    variables = phase(
        variables | {"heads": heads},
        images,
        labels,
        first_block=0,
        num_steps=int(args.whole_epochs * args.pictures / args.batch_size),
        cell_weight=1.0,
        report=report,
    )

    weights = {name: variables[name] for name in ("params", "batch_stats")}
    stem = jax.jit(lambda x: encoder.apply(weights, x, method=run_stem).astype(jnp.float16))

    def through_stem(images: np.ndarray) -> np.ndarray:
        return np.concatenate([stem(part) for part in np.split(images, len(images) // EVAL_BATCH)])

    usable = len(images) // EVAL_BATCH * EVAL_BATCH
    images, labels = through_stem(images[:usable]), {name: value[:usable] for name, value in labels.items()}
    checks = {name: (through_stem(inputs), answers) for name, (inputs, answers) in checks.items()}
    phase(
        variables,
        images,
        labels,
        first_block=1,
        num_steps=int(args.upper_epochs * args.pictures / args.batch_size),
        cell_weight=0.3,
        report=report,
    )


if __name__ == "__main__":
    main()
