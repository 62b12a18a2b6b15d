"""Compile the recipes' steps for TPUs and GPUs that this machine does not have, and tell what they would take there.

    pip install '.[tpu]'
    python experiments/compile_for_pod.py --out=experiments/results/pods.md
    python experiments/compile_for_pod.py --recipes coco_up_down --topologies v5e:16x16 --model_parallel 1 4

    pip install '.[gpu]'      # in an environment of its own: without a GPU, JAX then complains at every start
    python experiments/compile_for_pod.py --topologies h100:1x8 h100:32x8

XLA's compiler for TPUs comes with `libtpu` and needs no TPU; that for GPUs comes with `jax-cuda12-plugin` and needs no
GPU but a description of one (kernels are then not tuned by trying them). Each step (training, reinforcement, feature
extraction, decoding) is lowered for shapes alone and compiled for a topology; the table has what the compiler says of
it: memory a device, arguments included, against what the chip has, the collectives of the program with the bytes of
their results on a device, and the largest batch that fits.

Vocabulary and references are of COCO's size, decoders and encoder compute in bfloat16. Floating-point operations are
those of the matrix products and convolutions of the traced program. What stands in a loop, collectives too, counts as
often as it runs where that is known before (a scan), and once where it is not: for a search that is one word, for the
loss 4,096 positions. Features are extracted by the data axis alone, and alike for all recipes.
"""

import os

# The compiler asks neither a metadata server nor a device, and several processes may use it.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_STDERR_LOG_LEVEL": "3"}
# Without a GPU to try them on, the tiles of its own matrix products are a guess, which can fail: cuBLAS's have none.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
)

import argparse
import importlib.metadata
import math
import pathlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from capjax import assembly
from capjax.captioning.generator import Generator
from capjax.config import load_config
from capjax.decoding.settings import DecoderSettings
from capjax.metrics.ngram_trie import NgramTrie
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.sharding import DATA_AXIS, MODEL_AXIS, batch_sharded, replicated, state_shardings
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.training.scst_step import RewardTables, SelfCriticalSettings, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from capjax.training_run.setup import make_optimization

RECIPES = ("reference", "coco_par_inject", "coco_show_and_tell", "coco_soft_attention", "coco_att2in", "coco_up_down")
RECIPES += ("coco_transformer", "coco_finetune", "self_critical:coco_att2in")
TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v6e:2x4", "v6e:16x16")
NUM_WORDS = 8_769  # COCO's vocabulary at five occurrences
NUM_NGRAMS = (25_000, 400_000, 1_400_000, 2_400_000)  # of COCO's training captions, one to four words, rounded up
NUM_REFERENCES, REFERENCE_LENGTH = 7, 50
GIGABYTES = {"v5e": 16, "v6e": 32, "v5p": 95, "h100": 80}  # of a chip, from Google's and NVIDIA's documentation
# What XLA asks of a GPU that it compiles for; the figures are those of NVIDIA's Hopper architecture white paper.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 2 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
}
"""
DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def devices_of(topology: str) -> list[Any]:
    """Describe the devices of a topology: `v5e:2x4`, or for GPUs machines × those in each, `h100:32x8`."""
    chip, _, shape = topology.partition(":")
    if chip == "h100":
        options = {"platform": "cuda", "target_config": H100, "topology": f"1x{shape}"}
        return topologies.get_topology_desc(topology, **options).devices
    return topologies.get_topology_desc(topology, platform="tpu").devices


class Step(NamedTuple):
    """A program and the shapes of its arguments, by the captions or images that a device gets."""

    name: str
    arguments: Callable[[int], tuple[Any, ...]]
    program: Any


class Compiled(NamedTuple):
    """What the compiler says of a program; bytes are a device's."""

    seconds: float
    argument_bytes: int
    peak_bytes: int
    operations: float
    collectives: Counter[str]
    collective_bytes: int


def shapes_of(tree: Any, sharding: Any) -> Any:
    """Put shapes in the place of arrays, all sharded alike or as a tree of shardings says."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding)


def steps_of(config: ConfigDict, mesh: Mesh, encoder: EncoderConfig) -> Iterator[Step]:
    """List the steps that a recipe takes."""
    num_rows, split, whole = mesh.shape[DATA_AXIS], batch_sharded(mesh), replicated(mesh)
    vocab_size = -(-NUM_WORDS // mesh.shape[MODEL_AXIS]) * mesh.shape[MODEL_AXIS]
    from_images = not config.features.dir
    model = assembly.captioner_from(config, vocab_size, encoder if from_images else None)
    network = encoder.build(jnp.bfloat16)

    def images(number: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((number, encoder.image_size, encoder.image_size, 3), jnp.uint8)

    encoder_variables = jax.eval_shape(network.init, jax.random.key(0), images(1))

    def visual(number: int) -> Any:
        """Images, or features as the run stores them."""
        if from_images:
            return images(number)
        features = jax.eval_shape(network.apply, encoder_variables, images(number))
        stored = jnp.dtype("float16" if config.features.dtype == "float32" else config.features.dtype)
        as_stored = partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, stored))
        return as_stored(features if config.encoder.grid else features._replace(grid=None))

    variables = jax.eval_shape(model.init, jax.random.key(0), visual(1), jnp.zeros((1, 1), jnp.int32))
    _, optimizer = make_optimization(config)
    state = jax.eval_shape(partial(TrainState.create, optimizer=optimizer), variables)
    state = shapes_of(state, state_shardings(state, mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def images_of(per_device: int) -> int:
        return max(1, per_device // config.train.captions_per_image) * num_rows

    def batch(per_device: int) -> dict[str, Any]:
        per_image = config.train.captions_per_image
        captions = images_of(per_device) * per_image
        tokens = jax.ShapeDtypeStruct((captions, config.train.max_tokens), jnp.int32)
        return {
            "image" if from_images else "features": visual(images_of(per_device)),
            "tokens": tokens,
            "mask": jax.ShapeDtypeStruct((captions, config.train.max_tokens - 1), jnp.bool_),
            "valid": jax.ShapeDtypeStruct((images_of(per_device),), jnp.bool_),
        }

    if config.train.objective == "self_critical":
        settings = SelfCriticalSettings(**config.self_critical.to_dict(), max_length=config.search.max_length)

        def arguments(per_device: int) -> tuple[Any, ...]:
            images = images_of(per_device)
            references = jax.ShapeDtypeStruct((images, NUM_REFERENCES, REFERENCE_LENGTH), jnp.int32)
            norms = jax.ShapeDtypeStruct((images, NUM_REFERENCES, 4), jnp.float32)
            given = batch(per_device) | {"references": references, "reference_norms": norms}
            return state, shapes_of(given, split), shapes_of(reward_tables(vocab_size), whole), shapes_of(key, whole)

        yield Step("reinforcement", arguments, jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings))
        return
    train = jit_train_step(
        mesh, model=model, optimizer=optimizer, label_smoothing=config.train.label_smoothing, accumulate_steps=1
    )
    yield Step("training", lambda n: (state, shapes_of(batch(n), split), shapes_of(key, whole)), train)

    vocabulary = Vocabulary([*SPECIAL_WORDS, *(f"w{i}" for i in range(vocab_size - 4))], "words")
    for beam_size in (1, 3):
        search = {"method": "greedy"} if beam_size == 1 else {"method": "beam", "beam_size": beam_size}
        generate = Generator([model], vocabulary, mesh)._build(DecoderSettings(**search), ())

        def decoding(per_device: int) -> tuple[Any, ...]:
            ids = jax.ShapeDtypeStruct((per_device * num_rows,), jnp.uint32)
            inputs, ids = shapes_of((visual(per_device * num_rows), ids), split)
            return shapes_of([variables], whole), inputs, shapes_of(jax.ShapeDtypeStruct((), jnp.uint32), whole), ids

        yield Step(f"decoding, {'greedy' if beam_size == 1 else 'beam 3'}", decoding, generate)
    yield Step(
        "feature extraction",
        lambda n: (shapes_of(encoder_variables, whole), shapes_of(images(n * num_rows), split)),
        jax.jit(network.apply, out_shardings=split),
    )


def reward_tables(vocab_size: int) -> RewardTables:
    """Return the shapes of the reward's tables for COCO's references."""
    ids = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in NUM_NGRAMS]
    first_child = tuple(jax.ShapeDtypeStruct((n + 1,), jnp.int32) for n in NUM_NGRAMS[:-1])
    idf = tuple(jax.ShapeDtypeStruct((n,), jnp.float32) for n in NUM_NGRAMS)
    trie = NgramTrie(first_child, tuple(ids[1:]), idf, jax.ShapeDtypeStruct((), jnp.float32))
    words = jax.ShapeDtypeStruct((vocab_size,), jnp.int32)
    return RewardTables(trie, words, jax.ShapeDtypeStruct((vocab_size,), jnp.bool_))


def compile_step(step: Step, per_device: int, mesh: Mesh) -> Compiled:
    """Compile a step for so many captions, or images, a device."""
    platform = "tpu" if mesh.devices.flat[0].platform == "tpu" else "cuda"
    traced = step.program.trace(*step.arguments(per_device))
    start = time.perf_counter()
    compiled = traced.lower(lowering_platforms=(platform,)).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    collectives, collective_bytes = collectives_of(compiled.as_text())
    return Compiled(
        seconds,
        memory.argument_size_in_bytes,
        held + memory.temp_size_in_bytes,
        operations_of(traced.jaxpr.jaxpr) / mesh.size,
        collectives,
        collective_bytes,
    )


def operations_of(jaxpr: Any) -> float:
    """Count floating-point operations of products and convolutions, over all devices."""
    total = 0.0
    for equation in jaxpr.eqns:
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * outputs * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * outputs * math.prod(kernel) / out_features
        inner = [operations_of(x) for value in params.values() for x in _jaxprs(value)]
        times = params["length"] if name == "scan" else 1
        if name == "shard_map":  # inside are the shapes of one device
            times = math.prod(params["mesh"].shape.values())
        total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> list[Any]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [getattr(x, "jaxpr", x) for x in values if hasattr(getattr(x, "jaxpr", x), "eqns")]


def collectives_of(hlo: str) -> tuple[Counter[str], int]:
    """Count the collectives in a compiled program, by kind, and the bytes of their results on a device."""
    kinds, total = Counter[str](), 0
    pattern = re.compile(rf"= (\(.*?\)|\S+) ({COLLECTIVES})(?:-start)?\(")
    computation, trips = "", trip_counts(hlo)
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        if match := pattern.search(line):
            times = trips.get(computation, 1)
            kinds[match[2]] += times
            total += times * sum(
                DTYPE_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, shape.split(","))))
                for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1])
            )
    return kinds, total


def trip_counts(hlo: str) -> dict[str, int]:
    """Return how often the bodies of loops run, where the compiler knows."""
    found = re.finditer(r"while\(.*body=%?([\w.\-]+).*?known_trip_count\W+n\W+(\d+)", hlo)
    return {match[1]: int(match[2]) for match in found}


def largest_batch(step: Step, mesh: Mesh, capacity: float, per_device: int, compiled: Compiled) -> int:
    """Return the largest power of two of captions, or images, a device that compiles and fits: twice as many do not.

    Args:
        step: what to compile.
        mesh: for which devices.
        capacity: bytes that a device has.
        per_device: captions, or images, that `compiled` is for: beyond its arguments memory grows about in proportion,
            which tells where to begin to try.
        compiled: the step for so many.
    """

    def fits(number: int) -> bool:
        try:
            return compile_step(step, number, mesh).peak_bytes <= capacity
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return False

    bytes_of_one = max(1, compiled.peak_bytes - compiled.argument_bytes) / per_device
    number = 2 ** int(math.log2(max(1.0, (capacity - compiled.argument_bytes) / bytes_of_one)))
    if fits(number):
        while fits(2 * number):
            number *= 2
        return number
    while number > 1 and not fits(number // 2):
        number //= 2
    return number // 2


def main() -> None:
    """Compile, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument(
        "--topologies", nargs="+", default=list(TOPOLOGIES), help="such as v5e:2x4, v6e:16x16 or h100:32x8"
    )
    parser.add_argument("--model_parallel", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", nargs="+", default=["training", "reinforcement", "feature", "decoding"])
    parser.add_argument("--per_device", type=int, default=64, help="captions, or images, of a device")
    parser.add_argument("--largest", action="store_true", help="find the largest batch as well, but for decoding")
    parser.add_argument("--out", type=pathlib.Path, help="a file, to which a table is appended")
    args = parser.parse_args()
    packages = {"jax-cuda12-plugin" if name.startswith("h100") else "libtpu" for name in args.topologies}
    try:
        compiler = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in sorted(packages))
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"expected {error.name} to be installed; the top of this script says how")
    lines = [
        "",
        f"jax {jax.__version__}, {compiler}; {args.per_device} captions or images a device.",
        "",
        "| recipe | step | topology | data × model | GFLOP | memory, MB (of the chip's) | arguments, MB | collectives "
        "| MB in them | largest batch a device | compiled in, s |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    print("\n".join(lines), flush=True)
    extracted: set[tuple] = set()
    combinations = [(r, t, m) for r in args.recipes for t in args.topologies for m in args.model_parallel]
    for recipe, topology, model_parallel in tqdm(combinations, file=sys.stderr):
        devices = devices_of(topology)
        capacity = 1e9 * GIGABYTES[topology.split(":")[0]]
        mesh = Mesh(np.asarray(devices).reshape(-1, model_parallel), (DATA_AXIS, MODEL_AXIS))
        config = load_config(recipe, ["train.dtype=bfloat16", "encoder.dtype=bfloat16"])
        encoder = EncoderConfig(grid_side=config.encoder.grid_side)
        for step in steps_of(config, mesh, encoder):
            extraction = (step.name, topology, encoder)
            if not step.name.startswith(tuple(args.steps)) or extraction in extracted:
                continue
            if step.name == "feature extraction":
                extracted.add(extraction)
            cells = [recipe, step.name, topology, f"{mesh.shape[DATA_AXIS]} × {model_parallel}"]
            try:
                compiled = compile_step(step, args.per_device, mesh)
            except jax.errors.JaxRuntimeError as error:
                lines.append(f"| {' | '.join(cells)} | does not compile: {str(error).splitlines()[0][:200]} |")
                print(lines[-1], flush=True)
                continue
            largest = "–"
            if args.largest and "decoding" not in step.name:
                largest = f"{largest_batch(step, mesh, capacity, args.per_device, compiled):,}"
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(compiled.collectives.items())) or "none"
            cells += [f"{compiled.operations / 1e9:,.1f}"]
            cells += [f"{compiled.peak_bytes / 1e6:,.0f} ({compiled.peak_bytes / capacity:.1%})"]
            cells += [f"{compiled.argument_bytes / 1e6:,.0f}", kinds, f"{compiled.collective_bytes / 1e6:,.1f}"]
            lines.append(f"| {' | '.join([*cells, largest, f'{compiled.seconds:.0f}'])} |")
            print(lines[-1], flush=True)
    if args.out:
        with open(args.out, "a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
