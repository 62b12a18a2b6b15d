"""The job `capjax weights fetch | convert | verify`: makes and checks encoder files of pretrained Inception V3."""

import argparse
import math
import pathlib
from collections.abc import Iterable

import h5py
import numpy as np
import safetensors

from capjax.errors import CapjaxError
from capjax.host import download
from capjax.host.disk import local_path
from capjax.models import inception_v3
from capjax.pretrained import encoder_file, inception_map, keras_h5, side_by_side, torchvision
from capjax.pretrained.published import PUBLISHED, default_cache_dir
from capjax.pretrained.random_encoder import random_images

_TOLERANCE = 1e-5  # relative RMS between two correct float32 implementations; 1e-6 is usual


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three subcommands and their arguments."""
    commands = parser.add_subparsers(dest="weights_command", required=True, metavar="{fetch,convert,verify}")

    fetch = commands.add_parser("fetch", help="download published ImageNet weights, verify and convert them")
    fetch.add_argument("name", nargs="?", default="keras", choices=sorted(PUBLISHED), help="default: keras")
    fetch.add_argument("--out", type=local_path, help="encoder file to write; default: in the cache")
    default = "default: $CAPJAX_CACHE/weights, or ~/.cache/capjax/weights"
    fetch.add_argument("--cache_dir", type=local_path, help=default)
    fetch.add_argument("--url", help="get the same file from a mirror; it must still have the published hash")

    convert = commands.add_parser("convert", help="convert a Keras .h5, or torchvision's .pth or .safetensors")
    convert.add_argument("file", type=local_path, help="downloaded weights")
    convert.add_argument("--out", type=local_path, required=True, help="encoder file to write, *.safetensors")
    convert.add_argument(
        "--input_scaling",
        default="symmetric",
        choices=("symmetric", "imagenet"),
        help="what torchvision weights were trained on: symmetric as the published ones (transform_input=True), "
        "imagenet for ImageNet mean and standard deviation (transform_input=False)",
    )

    verify = commands.add_parser("verify", help="check an encoder file, beside the original network if installed")
    verify.add_argument("file", type=local_path, help="encoder file that `fetch` or `convert` wrote")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    match args.weights_command:
        case "fetch":
            return _fetch(args)
        case "convert":
            convert(args.file, args.out, args.input_scaling)
            return 0
        case _:
            return _verify(args.file)


def _fetch(args: argparse.Namespace) -> int:
    published = PUBLISHED[args.name]
    if args.url:
        published = published._replace(url=args.url)
    original = download.fetch(published, args.cache_dir or default_cache_dir())
    print(f"{original}: {published.digest} as published")
    convert(original, args.out or original.with_suffix(".safetensors"))
    return 0


def convert(file: pathlib.Path, out: pathlib.Path, input_scaling: inception_v3.InputScaling = "symmetric") -> None:
    """Convert foreign weights to an encoder file and print what was loaded where.

    Args:
        file: Keras HDF5, PyTorch checkpoint or safetensors with torchvision's names; the content decides.
        out: encoder file to write.
        input_scaling: for torchvision weights; see `inception_v3.scale_images`.

    Raises:
        CapjaxError: the file is unreadable or does not fit; `out` is untouched then.
    """
    conversion = _read(file, input_scaling)
    print_report(conversion.loaded)
    for name, shape in conversion.skipped.items():
        print(f"skipped {name} {_shape(shape)}: not part of the encoder")
    sha256 = encoder_file.save_encoder(out, conversion.config, conversion.variables)
    count = sum(math.prod(row.shape) for row in conversion.loaded)
    print(
        f"{out}: {len(conversion.loaded)} tensors, {count:,} numbers, {conversion.config.convention} convention, "
        f"weights {sha256}"
    )


def _read(file: pathlib.Path, input_scaling: inception_v3.InputScaling) -> inception_map.Conversion:
    if not file.is_file():
        raise CapjaxError(f"no such file: {file}")
    with open(file, "rb") as stream:
        start = stream.read(16)
    if start.startswith(b"\x89HDF") or h5py.is_hdf5(file):
        if input_scaling != "symmetric":
            raise CapjaxError("Keras' InceptionV3 sees pixels in [-1, 1]; leave --input_scaling at symmetric")
        return inception_map.from_keras(keras_h5.read_layers(file), file.name)
    if start[8:9] == b"{":
        return inception_map.from_torchvision(_read_safetensors(file), file.name, input_scaling)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return inception_map.from_torchvision(torchvision.read_state_dict(file), file.name, input_scaling)
    raise CapjaxError(f"{file} is neither Keras HDF5 nor PyTorch nor safetensors; it starts with {start!r}")


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            if encoder_file.METADATA_KEY in (opened.metadata() or {}):
                raise CapjaxError(f"{file} is an encoder file already; check it with `capjax weights verify`")
            return {torchvision.plain_name(name): opened.get_tensor(name) for name in opened.keys()}
    except (OSError, safetensors.SafetensorError, AttributeError, TypeError) as error:
        # The last two come of numbers of a kind that NumPy does not have.
        raise CapjaxError(f"cannot read {file}, is it complete? {error}") from error


def _verify(file: pathlib.Path) -> int:
    encoder = encoder_file.load_encoder(file)
    config, variables = encoder.config, encoder.variables
    tensors = encoder_file.flatten(variables)
    print_report(inception_map.describe(name, tensor, source=file.name) for name, tensor in tensors.items())
    print(f"{file}: {config}")
    print(f"weights {encoder.sha256}; shapes fit the network, all values are finite")
    if reason := side_by_side.missing_judge(config):
        print(f"not compared with the original implementation: {reason}")
        return 0
    images = random_images(1, config.image_size, seed=0)
    differences = side_by_side.compare_blocks(config, variables, images)
    for name, difference in differences.items():
        print(f"{name:<8} relative RMS difference to {config.convention}: {difference:.1e}")
    if worst := [name for name, difference in differences.items() if not difference <= _TOLERANCE]:
        raise CapjaxError(f"{file} differs from {config.convention} by more than {_TOLERANCE} from {worst[0]} on")
    return 0


def print_report(rows: Iterable[inception_map.LoadedTensor]) -> None:
    """Print one line per tensor: our name, where it came from, shape, mean and standard deviation."""
    print(f"{'variable':<48} {'loaded from':<40} {'shape':<15} {'mean':>10} {'std':>10}")
    for row in rows:
        print(f"{row.target:<48} {row.source:<40} {_shape(row.shape):<15} {row.mean:>10.3g} {row.std:>10.3g}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
