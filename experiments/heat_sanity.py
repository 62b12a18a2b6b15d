"""Does the heat of a word fall on what the word names? Measured on scenes, where it is known what lies where.

    capjax demo
    python experiments/heat_sanity.py --model=demo/run/model --data_dir=demo/data --heat=attention,occlusion

For test pictures with two or more groups of shapes, each colour and each shape word of a true caption that fits one
group alone is a trial. Two measures:

- *pointing*: the hottest cell lies on a member of that group (its circle, with half a cell around it). Chance is the
  share of the cells that do (pointing game, Zhang et al. 2018).
- *telling apart*: the mean heat on that group is higher than on every other group of the picture. Chance is one
  over the number of groups.

The same trials with randomised weights must come out at chance (Adebayo et al. 2018, "Sanity Checks for Saliency
Maps"): of the decoder alone, and of the encoder too.
"""

import argparse
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from capjax import data
from capjax.attribution import METHODS
from capjax.attribution.explainer import Explainer
from capjax.captioning.loaded_model import LoadedModel, load_model
from capjax.captioning.photos import PhotoCaptioner
from capjax.data.scenes.builder import scene_of
from capjax.data.scenes.captions import pluralise
from capjax.data.scenes.claims import caption_is_true
from capjax.data.scenes.layout import COLOURS, SHAPES, Group, Scene
from capjax.images import decode_image, preprocess


class Trial(NamedTuple):
    """A picture, a caption of it, the place of a word in it, the groups, and the one that the word names."""

    pixels: np.ndarray
    caption: str
    place: int
    groups: tuple[Group, ...]
    named: int


def trials(model: LoadedModel, data_dir: str, num_pictures: int) -> Iterator[Trial]:
    """Yield what can be measured of the true captions that a model writes of test pictures."""
    dataset = data.load("scenes", data_dir)
    records, images = dataset.records("test")[:num_pictures], dataset.images("test")
    pixels = [decode_image(images[i]) for i in range(len(records))]
    captions = PhotoCaptioner([model], 64)(pixels, model.search)
    for record, picture, caption in zip(records, pixels, captions, strict=True):
        scene = scene_of(record.image_id)
        if len(scene.groups) > 1 and caption_is_true(caption.text, scene):
            for place, named in named_groups(caption.text, scene):
                seen = preprocess(picture, model.preprocessing)
                yield Trial(seen, caption.text, place, scene.groups, named)


def named_groups(caption: str, scene: Scene) -> Iterator[tuple[int, int]]:
    """Yield the place of each colour or shape word of a caption that fits one group alone, and that group."""
    for place, word in enumerate(re.split(r"\W+", caption.lower())):
        colours = [colour for colour in COLOURS if word == colour]
        shapes = [shape for shape in SHAPES if word in (shape, pluralise(shape))]
        fitting = [i for i, group in enumerate(scene.groups) if group.colour in colours or group.shape in shapes]
        if len(fitting) == 1:
            yield place, fitting[0]


def region(group: Group, side: int, around: float = 0.0) -> Bool[np.ndarray, "side side"]:
    """Return the cells whose middle lies on a member of a group, or within `around` of it."""
    middle = (np.arange(side) + 0.5) / side
    inside = np.zeros((side, side), bool)
    for member in group.members:
        distance = np.hypot(middle[None, :] - member.x, middle[:, None] - member.y)
        inside |= distance <= max(member.radius + around, distance.min())
    return inside


def outcome(heat: Float[np.ndarray, "side side"], trial: Trial) -> tuple[float, float, float, float]:
    """Return hit and chance of pointing, and of telling apart."""
    side = heat.shape[0]
    target = region(trial.groups[trial.named], side, 0.5 / side)
    fine = 48 // side * side  # cells are larger than small shapes: look at smooth heat
    smooth = np.asarray(jax.image.resize(heat, (fine, fine), "linear"))
    warmth = [smooth[region(group, fine)].mean() for group in trial.groups]
    best = int(np.argmax(warmth)) == trial.named and np.ptp(warmth) > 0
    return bool(target.flat[heat.argmax()]), target.mean(), best, 1 / len(trial.groups)


def randomised(model: LoadedModel, parts: tuple[str, ...]) -> LoadedModel:
    """Draw the weights of some parts of a model anew, each array with the mean and the spread that it had."""
    rng = np.random.default_rng(0)

    def drawn(weight: Any) -> np.ndarray:
        return rng.normal(weight.mean(), weight.std(), weight.shape).astype(weight.dtype)

    params = dict(model.variables["params"])
    params |= {part: jax.tree.map(drawn, params[part]) for part in parts}
    return model._replace(variables={**model.variables, "params": params})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder of the prepared scenes")
    parser.add_argument("--heat", default="occlusion,integrated_gradients", help=f"comma-separated, of {list(METHODS)}")
    parser.add_argument("--num_pictures", type=int, default=400)
    args = parser.parse_args()
    model = load_model(args.model)
    found = list(trials(model, args.data_dir, args.num_pictures))
    print(f"{model.config.decoder.name}, {len(found)} words of {len({t.caption for t in found})} captions\n")
    print("| heat | weights | pointing (chance) | telling apart (chance) |\n| --- | --- | --- | --- |")
    weights = {"trained": (), "decoder random": ("decoder",), "all random": ("decoder", "encoder")}
    for method in args.heat.split(","):
        for name, parts in weights.items():
            explain = Explainer(randomised(model, parts), method)
            heats = [explain(t.pixels, t.caption).heat[t.place] for t in tqdm(found, method, disable=None)]
            results = np.asarray([outcome(heat, trial) for heat, trial in zip(heats, found, strict=True)])
            hit, by_chance, apart, apart_by_chance = results.mean(axis=0)
            error = 1.96 * results[:, [0, 2]].std(axis=0) / len(results) ** 0.5
            print(
                f"| {method} | {name} | {hit:.1%} ± {error[0]:.1%} ({by_chance:.1%}) | "
                f"{apart:.1%} ± {error[1]:.1%} ({apart_by_chance:.1%}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
