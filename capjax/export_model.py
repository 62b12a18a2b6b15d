"""The job `capjax export`: a captioner and its search as one file that runs without capjax.

    capjax export --model=runs/reference/model --out=captioner.pyz --beam_size=3
    python captioner.pyz photo.jpg                   # needs jax, numpy and pillow alone

What happens between pixels and ids of words (encoder, decoder, search) is one program of StableHLO, serialised by
`jax.export` for any number of images and for CPUs, CUDA and TPUs. JAX reads such programs for at least six months with
newer versions (https://docs.jax.dev/en/latest/export/export.html). See `capjax.standalone` for what runs it.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from capjax import __version__
from capjax.captioning.generator import search_function
from capjax.captioning.loaded_model import LoadedModel, load_model
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.decoding.settings import DecoderSettings
from capjax.host.disk import local_path, write_atomically
from capjax.standalone.exported_captioner import FORMAT_VERSION
from capjax.text.vocabulary import SPECIAL_WORDS
from capjax.types import SPECIAL_IDS

PLATFORMS = ("cpu", "cuda", "tpu")
_PACKAGE = pathlib.Path(__file__).parent
_FLATBUFFERS = pathlib.Path(flatbuffers.__file__).parent  # with which JAX reads exported programs, and does not bring
# What lies in the file besides program and weights: name there, and here.
_PROGRAMS = {
    "__main__.py": "standalone/zip_main.py",
    "exported_captioner.py": "standalone/exported_captioner.py",
    "stand_in/jaxtyping.py": "standalone/jaxtyping_stand_in.py",
    "capjax/errors.py": "errors.py",
    "capjax/images.py": "images.py",
}


def export_program(
    model: LoadedModel, settings: DecoderSettings, platforms: Sequence[str] = PLATFORMS
) -> tuple[export.Exported, list[np.ndarray]]:
    """Export from pixels to ids of words.

    Args:
        model: with an encoder.
        settings: of the search.
        platforms: that it is to run on.

    Returns:
        The program, called as (weights, pixels uint8 [b, S, S, 3], ids uint32 [b]) -> (tokens int32 [b, K, L],
        log_probs float32 [b, K]), and the weights; the ids, one of each image, are for searches that draw.

    Raises:
        CapjaxError: if the model has no encoder, its decoder was built for shorter captions, or the settings name words
            that the vocabulary lacks.
    """
    side = model.require_preprocessing("capjax evaluate scores it on such features").image_size
    find = search_function([model.captioner], model.vocabulary, settings)
    leaves, tree = jax.tree.flatten(model.variables)

    def caption(weights: list[jax.Array], pixels: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = find([jax.tree.unflatten(tree, weights)], pixels, settings.seed, ids)
        return found.tokens, found.log_probs

    (batch,) = export.symbolic_shape("b")
    shapes = (
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch,), jnp.uint32),
    )
    return export.export(jax.jit(caption), platforms=platforms)(*shapes), [np.asarray(leaf) for leaf in leaves]


def packed(model: LoadedModel, settings: DecoderSettings) -> bytes:
    """Return the content of the exported file."""
    program, weights = export_program(model, settings)
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "capjax": __version__,
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "platforms": program.platforms,
        "recipe": model.config.recipe,
        "scores": model.summary["scores"],
        "search": settings.to_dict(),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "words": list(model.vocabulary.words),
        "num_special": len(SPECIAL_WORDS),
        "end": SPECIAL_IDS.end,
        "num_weights": len(weights),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # weights do not get smaller
        archive.writestr("description.json", json.dumps(description, ensure_ascii=False, indent=1))
        archive.writestr("program.bin", program.serialize(), zipfile.ZIP_DEFLATED)
        archive.writestr("capjax/__init__.py", f'"""What an exported captioner needs of capjax {__version__}."""\n')
        for name, source in _PROGRAMS.items():
            archive.writestr(name, (_PACKAGE / source).read_bytes())
        for source in sorted(_FLATBUFFERS.rglob("*.py")):
            archive.writestr(f"stand_in/flatbuffers/{source.relative_to(_FLATBUFFERS)}", source.read_bytes())
        for i, leaf in enumerate(weights):
            array = io.BytesIO()
            np.save(array, leaf, allow_pickle=False)
            archive.writestr(f"weights/{i}.npy", array.getvalue())
    return buffer.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax export`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--out", required=True, type=local_path, metavar="FILE", help="such as captioner.pyz")
    add_decoder_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Export a model directory."""
    model = load_model(args.model)
    content = packed(model, settings_from_flags(args, model.search))
    write_atomically(args.out, content)
    print(f"wrote {args.out}, {len(content) / 1e6:,.1f} MB; caption with: python {args.out} PHOTO…")
    return 0
