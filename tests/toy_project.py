"""A user's folder for tests: a few photos of toys with captions, prepared, with features of a small encoder."""

import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw

from capjax.cli import main

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 50)}
ENCODER = [
    "--config.encoder.weights=random",
    "--config.encoder.depth_multiplier=0.25",
    "--config.encoder.final_endpoint=mixed0",
    "--config.encoder.image_size=75",
]


def draw(path: pathlib.Path, colour: str, shape: str) -> None:
    """Draw a toy."""
    image = Image.new("RGB", (96, 80), "white")
    getattr(ImageDraw.Draw(image), shape)((20, 15, 75, 65), fill=COLOURS[colour])
    image.save(path)


def prepare(root: pathlib.Path, *options: str) -> None:
    """Draw 24 training and 8 validation photos, write their captions, prepare the dataset `folder/toys`."""
    (root / "photos").mkdir(parents=True, exist_ok=True)
    rows = ["file,caption,split"]
    for i in range(32):
        colour, shape = list(COLOURS)[i % 4], ("ellipse", "rectangle")[i // 4 % 2]
        draw(root / "photos" / f"{i:02d}.png", colour, shape)
        noun = {"ellipse": "circle", "rectangle": "box"}[shape]
        split = "val" if i >= 24 else "train"
        rows += [f"{i:02d}.png,A {colour} {noun}.,{split}", f"{i:02d}.png,there is a {colour} {noun},{split}"]
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    assert prepare_again(root, *options) == 0


def prepare_again(root: pathlib.Path, *options: str) -> int:
    """Prepare the dataset from what is in the folder."""
    source = [f"--images={root / 'photos'}", f"--captions={root / 'captions.csv'}", f"--data_dir={root / 'data'}"]
    return main(["data", "prepare", "folder", "--name=toys", *source, *options])


def config(root: pathlib.Path, recipe: str = "folder", argument: str = ":toys") -> list[str]:
    """Return the options of a recipe that make it train on the toys in seconds."""
    file = pathlib.Path(__file__).parent.parent / "configs" / f"{recipe}.py"
    changes = {
        "dataset.name": "folder/toys",
        "dataset.data_dir": root / "data",
        "features.dir": root / "features",
        "features.batch_size": 8,
        "decoder.dropout_rate": 0.0,
        "optimizer.learning_rate": 5e-3,
        "train.num_steps": 120,
        "train.batch_size": 16,
        "train.max_tokens": 8,
        "eval.every": 60,
        "eval.batch_size": 8,
        "search.max_length": 8,
    }
    return [f"--config={file}{argument}", *ENCODER, *changed(changes)]


def changed(changes: dict[str, object]) -> Sequence[str]:
    """Write changes of a configuration as options."""
    return [f"--config.{name}={value}" for name, value in changes.items()]
