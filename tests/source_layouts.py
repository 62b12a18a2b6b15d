"""Small image datasets in the official layouts, for the tests of the data sources."""

import io
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Draw a smooth colour gradient, another one for each seed, as (width, height) pixels."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def encode(image: Image.Image, image_format: str = "JPEG", **options) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(seed: int) -> bytes:
    """Encode `photo(seed)` as JPEG."""
    return encode(photo(seed))


def rotated_jpeg(seed: int, orientation: int = 6) -> bytes:
    """Encode `photo(seed)` with EXIF data that rotates it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(photo(seed), exif=exif)


def coco_json(captions: Mapping[str, Sequence[str]], ids: Mapping[str, int] | None = None) -> str:
    """Write captions by file name in the COCO layout; the id is the number at the end of the name by default."""
    ids = ids or {name: int(pathlib.PurePath(name).stem.split("_")[-1]) for name in captions}
    annotations = [(ids[name], caption) for name, texts in captions.items() for caption in texts]
    return json.dumps(
        {
            "info": {},
            "images": [{"id": ids[name], "file_name": name, "height": 30, "width": 40} for name in captions],
            "annotations": [{"id": i, "image_id": at, "caption": text} for i, (at, text) in enumerate(annotations)],
        }
    )


def write_coco(
    folder: pathlib.Path, ids_by_part: Mapping[str, Sequence[int]], zipped: bool = False
) -> dict[str, bytes]:
    """Write a COCO download, e.g. `{"train2014": [9, 25], "val2014": [42]}`; returns the images by file name."""
    images: dict[str, bytes] = {}
    members: dict[str, dict[str, bytes]] = {}
    for part, ids in ids_by_part.items():
        year = part[-4:]
        prefix = f"COCO_{part}_" if year == "2014" else ""
        names = {f"{prefix}{i:012d}.jpg": i for i in ids}
        captions = {name: [f"photo {i} once", f"photo {i} twice"] for name, i in names.items()}
        archive = f"annotations_trainval{year}.zip"
        members.setdefault(archive, {})[f"annotations/captions_{part}.json"] = coco_json(captions, names).encode()
        members[f"{part}.zip"] = {f"{part}/{name}": jpeg(i) for name, i in names.items()}
        images |= {name: jpeg(i) for name, i in names.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for archive, files in members.items():
        if zipped:
            with zipfile.ZipFile(folder / archive, "w") as file:
                for name, data in files.items():
                    file.writestr(name, data)
        else:
            for name, data in files.items():
                write(folder / name, data)
    return images


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
