"""Encode every image of a dataset once: `capjax features --config=FILE`.

Devices share each batch, processes share the shards; a run that was stopped continues with the missing shards.
`--import=FILE.npz` brings in features that another program computed.
"""

import argparse
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import assembly, split_rows
from capjax import config as configuration
from capjax.data.feature_import import import_npz
from capjax.data.feature_store import FeatureStore, create_store
from capjax.data.input_pipeline import READ_OPTIONS, ImageRows, patiently
from capjax.distributed import add_process_arguments, number_processes
from capjax.errors import CapjaxError
from capjax.host.disk import check_room, local_path
from capjax.pretrained.encoder_file import LoadedEncoder
from capjax.sharding import batch_sharded, make_mesh, one_ahead, replicated
from capjax.types import Features


def extract_features(
    config: ConfigDict, splits: list[str] | None = None, *, process_index: int = 0, process_count: int = 1
) -> FeatureStore:
    """Fill the feature store of a configuration.

    Args:
        config: `features.dir`, `encoder` and `dataset` are read.
        splits: which, or all that the dataset has.
        process_index: which part of the shards to make.
        process_count: among how many processes they are divided.

    Raises:
        CapjaxError: if the store was made with something else, the disk is too small, or the configuration names no
            encoder.
    """
    encoder = assembly.encoder_from(config)
    if encoder is None:
        raise CapjaxError("expected encoder.weights to be set for extraction, got ''; or use --import=FILE.npz")
    if not config.features.dir:
        raise CapjaxError("expected a folder to write to, set --config.features.dir=DIR")
    dataset = split_rows.dataset_of(config)
    preprocessing = assembly.preprocessing_from(config, encoder)
    encode = Encode(encoder, config.encoder.dtype, config.features.batch_size)

    probe = encode.shapes()
    store = create_store(
        config.features.dir,
        split_rows.feature_key(config, encoder) | {"dataset_version": dataset.version},
        probe.pooled.shape[1],
        probe.grid.shape[1] if config.encoder.grid else None,
        config.features.dtype,
    )
    plan = {}
    for split in splits or dataset.splits:
        store.begin_split(split, dataset.records(split), dataset.images_sha256(split))
        # Dealt by number: what is on disk already is not the same for all processes when they look.
        mine = store.shards(split)[process_index::process_count]
        plan[split] = [shard for shard in mine if not store.has_shard(split, shard)]
    _announce(store, plan, aloud=process_index == 0)
    for split, missing in plan.items():
        rows = ImageRows(dataset.images(split), preprocessing)
        with tqdm(total=sum(map(len, missing)), desc=f"features of {split}", unit="image", disable=None) as bar:
            for shard in missing:
                store.write_shard(split, shard, encode(rows, shard, config.encoder.grid, bar))
    _tell_what_is_left(store, list(plan))
    return store


class Encode:
    """The encoder, compiled once for one batch shape, over this process's devices."""

    def __init__(self, encoder: LoadedEncoder, dtype: str, batch_size: int) -> None:
        """Put the weights on the devices, each of which sees `batch_size` images at once."""
        mesh = make_mesh(jax.local_devices())
        self._batch_size = batch_size * mesh.size
        self._image_size = encoder.config.image_size
        self._sharding = batch_sharded(mesh)
        self._variables = jax.device_put(encoder.variables, replicated(mesh))
        self._apply = jax.jit(encoder.config.build(jnp.dtype(dtype)).apply, out_shardings=self._sharding)

    def shapes(self) -> Features:
        """Return the shapes of a batch of features without computing any."""
        image = jax.ShapeDtypeStruct((self._batch_size, self._image_size, self._image_size, 3), np.uint8)
        return jax.eval_shape(self._apply, self._variables, image)

    def __call__(self, rows: ImageRows, shard: range, grid: bool, bar: tqdm) -> Features:
        """Encode the given rows; decoding of the next images goes on meanwhile."""
        size = self._batch_size
        batches = grain.MapDataset.source(shard).map(lambda i: rows[i]).batch(size).to_iter_dataset(READ_OPTIONS)

        def leaves(features: Features) -> list[Any]:
            return jax.tree.leaves(features if grid else features._replace(grid=None))

        # A shard's grids take half a gigabyte: they are put in their place at once, not joined in the end.
        encoded = [np.empty((len(shard), *x.shape[1:]), np.float32) for x in leaves(self.shapes())]
        done = 0

        def encode(images: UInt8[np.ndarray, "n S S 3"]) -> tuple[int, list[Any]]:
            # One shape, so that nothing compiles twice.
            full = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
            return len(images), leaves(self._apply(self._variables, jax.device_put(full, self._sharding)))

        for num_images, features in one_ahead(map(encode, patiently(iter(batches), rows))):
            for into, found in zip(encoded, features, strict=True):
                into[done : done + num_images] = np.asarray(found)[:num_images]
            done += num_images
            bar.update(num_images)
        return Features(*encoded)


def _announce(store: FeatureStore, plan: dict[str, list[range]], aloud: bool) -> None:
    """Say what this process is about to write, if anything or if `aloud`, and refuse a disk that cannot take it."""
    num_images = sum(len(shard) for missing in plan.values() for shard in missing)
    needed = store.bytes_needed(num_images)
    check_room(store.path, needed, f"features of {num_images:,} images (--config.features.dtype=float16 halves them)")
    if aloud and not num_images:
        print(f"nothing to do: the features asked for are in {store.path}", file=sys.stderr)
    if num_images:
        print(f"writing features of {num_images:,} images, {needed / 1e6:,.1f} MB, to {store.path}", file=sys.stderr)


def _tell_what_is_left(store: FeatureStore, splits: list[str]) -> None:
    """Report the shards that other processes have still to write."""
    left = sum(len(shard) for split in splits for shard in store.missing_shards(split))
    if left:
        total = sum(store.num_rows(split) for split in splits)
        print(
            f"features of {left:,} of {total:,} images are left to other processes; where one of them has ended, start "
            "the same command again: it makes what is missing",
            file=sys.stderr,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax features`."""
    configuration.add_config_arguments(parser)
    parser.add_argument("--splits", help="comma-separated; all by default")
    parser.add_argument("--import", dest="npz", type=local_path, help="an .npz with file_name, pooled and perhaps grid")
    add_process_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Extract or import features."""
    config = configuration.load_config(args.config, args.overrides)
    process_index, process_count = number_processes(args)
    splits = args.splits.split(",") if args.splits else None
    if args.npz is None:
        extract_features(config, splits, process_index=process_index, process_count=process_count)
        return 0
    if not config.features.dir:
        raise CapjaxError("expected a folder to write to, set --config.features.dir=DIR")
    if config.encoder.weights:
        raise CapjaxError(
            "expected no encoder beside --import, whose features another program made, got encoder.weights = "
            f"{config.encoder.weights!r}; set --config.encoder.weights= here and where they are trained on"
        )
    dataset = split_rows.dataset_of(config)
    records = {split: dataset.records(split) for split in splits or dataset.splits}
    for split, (imported, lacking) in import_npz(args.npz, config.features.dir, dataset.name, records).items():
        print(f"{split}: imported features of {imported:,} images, {lacking:,} are not in {args.npz}")
    return 0
