"""The reference decoder against PyTorch: training words/s, greedy and beam-search captions/s, interleaved in one run.

    python experiments/benchmarks/decoder.py --out=experiments/results/decoder.md
    python experiments/benchmarks/decoder.py --dtype=bfloat16 --train_batches 64 4096 --batches 1 1024 --profile

The PyTorch program is what a competent user would write: `nn.LSTM` over the padded batch, `CrossEntropyLoss` over the
words only (`ignore_index`); or, as "packed", the vocabulary layer on the words only, with and without a packed LSTM
(`pack_padded_sequence`), of which the faster counts; batched greedy and beam search. Both sides compute on the same
batches and write captions of exactly 20 words, so that neither gains by a model that happens to stop early. On a CPU
both have all cores, and memory is handed out as `capjax` sets it (`capjax.host.memory`). On a GPU PyTorch's LSTM is
cuDNN's, float32 products are of TensorFloat-32 on both sides, and it also runs with `torch.compile` (of the loss, of a
step of decoding); bfloat16 is `torch.autocast` there and `train.dtype` here.

The share of the limit is what the matrix products alone would take, over the time of the row: those of the words that
count, each with the fastest of OpenBLAS (NumPy), PyTorch and XLA (`limits.py`). Memory is what the compiled program
holds on the device at most (XLA's account) or what PyTorch had allocated at most, parameters included.
"""

import argparse
import copy
import dataclasses
import itertools
import pathlib
import platform
from collections.abc import Callable
from functools import partial

from capjax.host.memory import keep_freed_memory

keep_freed_memory()  # before there are threads

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from device import DEVICE, ON_CPU, busiest, description, finish
from limits import Product, seconds_of
from timing import command_line, interleave, versus
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from capjax.decoding.settings import DecoderSettings, build_search
from capjax.models import Captioner, InitInjectDecoder, begin_search
from capjax.sharding import make_mesh, replicate, shard_batch
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from capjax.types import SPECIAL_IDS, Features

SIZES = {
    "reference (100/300/120, V 8,769)": {"vocab": 8769, "embed": 100, "hidden": 300, "bottleneck": 120},
    "Show and Tell-like (512/512/512, V 9,000)": {"vocab": 9000, "embed": 512, "hidden": 512, "bottleneck": 512},
}
NUM_FEATURES, MAX_TOKENS = 2048, 20


class TorchCaptioner(nn.Module):
    """The same model in PyTorch."""

    def __init__(self, vocab: int, embed: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(NUM_FEATURES, bottleneck), nn.ELU(), nn.Linear(bottleneck, hidden), nn.ELU()
        )
        self.embedding = nn.Embedding(vocab, embed)
        self.lstm = nn.LSTM(embed, hidden, batch_first=True)
        self.logits = nn.Sequential(nn.Linear(hidden, bottleneck), nn.ELU(), nn.Linear(bottleneck, vocab))

    def loss(
        self,
        pooled: torch.Tensor,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        packed: bool = False,
        packed_lstm: bool = False,
    ) -> torch.Tensor:
        """Mean cross-entropy of the words."""
        state = self.image(pooled)[None]
        words, targets = self.embedding(tokens[:, :-1]), tokens[:, 1:]
        if packed_lstm:
            pack = partial(pack_padded_sequence, lengths=lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = self.lstm(pack(words), (state, state))
            return nn.functional.cross_entropy(self.logits(outputs.data), pack(targets).data)
        outputs, _ = self.lstm(words, (state, state))
        if packed:
            is_word = targets != 0
            return nn.functional.cross_entropy(self.logits(outputs[is_word]), targets[is_word])
        return nn.functional.cross_entropy(self.logits(outputs).flatten(0, 1), targets.flatten(), ignore_index=0)

    def step(self, token: torch.Tensor, state: tuple) -> tuple[torch.Tensor, tuple]:
        """Feed one word per caption; return the logits of the next and the state."""
        output, state = self.lstm(self.embedding(token)[:, None], state)
        logits = self.logits(output[:, 0]).float()
        logits[:, :4] = -torch.inf
        return logits, state

    @torch.no_grad()
    def greedy(self, pooled: torch.Tensor, length: int) -> torch.Tensor:
        """Caption a batch greedily with words only, `length` of them."""
        state = self.image(pooled)[None]
        state = (state, state)
        token, tokens = torch.full((len(pooled),), 2, device=DEVICE), []
        for _ in range(length):
            logits, state = self.step(token, state)
            token = logits.argmax(dim=1)
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    @torch.no_grad()
    def beam(self, pooled: torch.Tensor, length: int, size: int) -> torch.Tensor:
        """Search with `size` beams for captions of `length` words, batched; return the best."""
        batch = len(pooled)
        state = self.image(pooled).repeat_interleave(size, dim=0)[None]
        state = (state, state)
        scores = torch.full((batch, size), -torch.inf, device=DEVICE)
        scores[:, 0] = 0.0
        token = torch.full((batch * size,), 2, device=DEVICE)
        tokens = torch.zeros((batch, size, length), dtype=torch.long, device=DEVICE)
        rows = torch.arange(batch, device=DEVICE)[:, None]
        for t in range(length):
            logits, state = self.step(token, state)
            log_probs = logits.log_softmax(dim=1).view(batch, size, -1)
            vocab = log_probs.shape[-1]
            scores, best = (scores[..., None] + log_probs).view(batch, -1).topk(size)
            parent, chosen = best // vocab, best % vocab
            tokens = tokens[rows, parent]
            tokens[:, :, t] = chosen
            flat = (parent + rows * size).flatten()
            state = tuple(s[:, flat] for s in state)
            token = chosen.flatten()
        return tokens[:, 0]


def make_tokens(rng: np.random.Generator, batch: int, vocab: int) -> np.ndarray:
    """Draw captions whose lengths are distributed like COCO's (mean 10.5 words, standard deviation 2.4)."""
    tokens = np.zeros((batch, MAX_TOKENS), np.int32)
    lengths = np.clip(rng.normal(10.5, 2.4, batch).round(), 6, MAX_TOKENS - 2).astype(int)
    for row, length in zip(tokens, lengths, strict=True):
        row[0], row[length + 1] = 2, 3
        row[1 : length + 1] = rng.integers(4, vocab, length)
    return tokens


@dataclasses.dataclass(frozen=True)
class Report:
    """Where rows of the table and profiles go, and how often each program runs."""

    dtype: str
    rounds: int
    with_profiles: bool
    rows: list[str] = dataclasses.field(default_factory=list)
    profiles: list[str] = dataclasses.field(default_factory=list)

    def add(
        self,
        work: str,
        programs: dict[str, Callable[[], object]],
        amount: float,
        unit: str,
        products: list[Product],
        our_memory: int,
    ) -> None:
        """Time programs in turn: rates, ratios to the fastest of PyTorch's round by round, shares of the limit.

        Args:
            work: what they do.
            programs: each waits for its result; "capjax" is ours.
            amount: how much of `unit` a call does, without the "/s".
            unit: of the rate.
            products: that the work cannot do without.
            our_memory: bytes on the device.
        """
        times = interleave(programs, self.rounds)
        if not self.rounds:
            return
        baseline = min((name for name in times if name != "capjax"), key=lambda name: np.median(times[name]))
        limit = seconds_of(products, self.dtype)
        for name, seconds in times.items():
            memory = our_memory if name == "capjax" else peak_of_torch(programs[name])
            cells = [work, name, f"{amount / np.median(seconds):,.0f} {unit}", versus(times[baseline], seconds)]
            cells += [f"{limit / np.median(seconds):.0%}", f"{memory / 1e6:,.0f} MB" if memory else "–"]
            self.rows.append(f"| {' | '.join(cells)} |")
            print(self.rows[-1], flush=True)
        if self.with_profiles:
            self.profiles.extend(["", f"{work}:", "", "| operation | ms | share |", "| --- | --- | --- |"])
            for name, spent, share in busiest(programs["capjax"]):
                self.profiles.append(f"| {name} | {spent:.2f} | {share:.0%} |")


def peak_of_torch(program: Callable[[], object]) -> int:
    """Return the bytes that a call has on the device at most; 0 on a CPU, where PyTorch does not count."""
    if ON_CPU:
        return 0
    torch.cuda.reset_peak_memory_stats()
    program()
    return torch.cuda.max_memory_allocated()


def peak_of_jax(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled program has on the device at most."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held + sizes.temp_size_in_bytes


def training_products(sizes: dict[str, int], lengths: np.ndarray) -> list[Product]:
    """List the products of a training step on captions of these lengths (words, END included)."""
    vocab, embed, hidden, bottleneck = (sizes[name] for name in ("vocab", "embed", "hidden", "bottleneck"))
    batch, words = len(lengths), int(lengths.sum())
    active = [int((lengths > t).sum()) for t in range(lengths.max())]  # captions that have a word t
    both_ways = [(words, embed, 4 * hidden), (words, hidden, bottleneck), (words, bottleneck, vocab)]
    both_ways += [(batch, bottleneck, hidden)]
    products = [Product(*p) for m, k, n in both_ways for p in ((m, k, n), (m, n, k), (k, m, n))]
    products += [Product(batch, NUM_FEATURES, bottleneck), Product(NUM_FEATURES, batch, bottleneck)]
    for rows, steps in itertools.groupby(active):
        times = len(list(steps))
        products += [Product(rows, hidden, 4 * hidden, times), Product(rows, 4 * hidden, hidden, times)]
    return [*products, Product(hidden, words, 4 * hidden)]


def decoding_products(sizes: dict[str, int], batch: int, beams: int, length: int) -> list[Product]:
    """List the products of writing captions of `length` words."""
    vocab, embed, hidden, bottleneck = (sizes[name] for name in ("vocab", "embed", "hidden", "bottleneck"))
    rows = batch * beams
    of_a_word = [(embed + hidden, 4 * hidden), (hidden, bottleneck), (bottleneck, vocab)]
    image = [Product(batch, NUM_FEATURES, bottleneck), Product(batch, bottleneck, hidden)]
    return [*image, *(Product(rows, k, n, length) for k, n in of_a_word)]


def benchmark_training(
    report: Report, label: str, sizes: dict[str, int], model: Captioner, variables: object, batch_size: int
) -> None:
    """Measure training steps."""
    rng, mesh = np.random.default_rng(0), make_mesh()
    tokens = make_tokens(rng, batch_size, sizes["vocab"])
    pooled = rng.normal(size=(batch_size, NUM_FEATURES)).astype(np.float32)
    lengths = (tokens[:, 1:] != 0).sum(axis=1)
    optimizer = optax.adam(1e-3)
    state = [replicate(TrainState.create(jax.tree.map(jnp.copy, variables), optimizer), mesh)]
    batch = {"features": Features(pooled), "tokens": tokens, "mask": tokens[:, 1:] != 0}
    batch = shard_batch(batch | {"image_id": np.arange(batch_size), "valid": np.ones(batch_size, bool)}, mesh)
    key = jax.random.key(0)
    step = jit_train_step(mesh, model=model, optimizer=optimizer).lower(state[0], batch, key).compile()

    def our_step() -> None:
        state[0], metrics = step(state[0], batch, key)
        jax.block_until_ready(metrics)

    theirs = TorchCaptioner(**sizes).to(DEVICE)
    torch_optimizer = torch.optim.Adam(theirs.parameters(), 1e-3, fused=True)
    on_device = torch.tensor(pooled).to(DEVICE), torch.tensor(tokens, dtype=torch.long).to(DEVICE)

    def their_step(loss_of: Callable[..., torch.Tensor] = theirs.loss, **packed: bool) -> None:
        torch_optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=report.dtype == "bfloat16"):
            loss = loss_of(*on_device, torch.from_numpy(lengths), **packed)
        loss.backward()
        torch_optimizer.step()
        finish()

    programs = {
        "PyTorch": their_step,
        "PyTorch, packed": partial(their_step, packed=True),
        "PyTorch, packed, the LSTM too": partial(their_step, packed_lstm=True),
    }
    if not ON_CPU:
        programs["PyTorch, compiled"] = partial(their_step, torch.compile(theirs.loss))
    programs["capjax"] = our_step
    products = training_products(sizes, lengths)
    work = f"train step, batch {batch_size}, {label}"
    report.add(work, programs, int(lengths.sum()), "words/s", products, peak_of_jax(step))


def benchmark_decoding(
    report: Report, label: str, sizes: dict[str, int], model: Captioner, variables: object, batch_size: int, beams: int
) -> None:
    """Measure searches: greedy with one beam."""
    pooled = np.random.default_rng(0).normal(size=(batch_size, NUM_FEATURES)).astype(np.float32)
    features = jax.device_put(Features(pooled))
    method = {"method": "greedy"} if beams == 1 else {"method": "beam", "beam_size": beams}
    search = build_search(DecoderSettings(**method, min_length=MAX_TOKENS), SPECIAL_IDS)

    @jax.jit
    def caption(weights: object, features: Features) -> object:
        return search(*begin_search(model, weights, features, MAX_TOKENS), None)

    compiled = caption.lower(variables, features).compile()
    theirs = TorchCaptioner(**sizes).to(DEVICE)
    on_device = torch.tensor(pooled).to(DEVICE)

    def their_search(network: TorchCaptioner) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=report.dtype == "bfloat16"):
            network.greedy(on_device, MAX_TOKENS) if beams == 1 else network.beam(on_device, MAX_TOKENS, beams)
        finish()

    programs = {"PyTorch": partial(their_search, theirs)}
    if not ON_CPU:
        with_compiled_step = copy.copy(theirs)
        with_compiled_step.step = torch.compile(theirs.step)
        programs["PyTorch, step compiled"] = partial(their_search, with_compiled_step)
    programs["capjax"] = lambda: jax.block_until_ready(compiled(variables, features))
    work = f"{'greedy' if beams == 1 else f'beam {beams}'}, batch {batch_size}, {label}"
    products = decoding_products(sizes, batch_size, beams, MAX_TOKENS)
    report.add(work, programs, batch_size, "captions/s", products, peak_of_jax(compiled))


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/decoder.md"))
    parser.add_argument("--rounds", type=int, default=12, help="0 compiles everything and times nothing")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    units = [sizes["hidden"] for sizes in SIZES.values()]
    parser.add_argument("--units", type=int, nargs="*", choices=units, default=units, help="of the LSTM")
    parser.add_argument("--train_batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64, 256], help="of greedy search")
    parser.add_argument("--beam_batches", type=int, nargs="*", default=[1, 64], help="of searches with 3 beams")
    parser.add_argument("--profile", action="store_true", help="list what our programs spend their time on")
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    args = parser.parse_args()
    report = Report(args.dtype, args.rounds, args.profile)
    for label, sizes in SIZES.items():
        if sizes["hidden"] not in args.units:
            continue
        widths = (sizes[name] for name in ("vocab", "embed", "hidden", "bottleneck", "bottleneck"))
        model = Captioner(InitInjectDecoder(*widths, dtype=jnp.dtype(args.dtype)))
        variables = jax.jit(model.init)(
            jax.random.key(0), Features(jnp.zeros((1, NUM_FEATURES))), jnp.zeros((1, 1), jnp.int32)
        )
        for batch_size in args.train_batches:
            benchmark_training(report, label, sizes, model, variables, batch_size)
        for beams, batches in ((1, args.batches), (3, args.beam_batches)):
            for batch_size in batches:
                benchmark_decoding(report, label, sizes, model, variables, batch_size, beams)
    lines = [
        "# Decoder against PyTorch",
        "",
        f"`{command_line()}`",
        "",
        f"{description()}, Python {platform.python_version()}; {args.dtype}, {args.rounds} interleaved rounds. × is "
        "the time of the fastest PyTorch program over that of the row, median over rounds [min–max]; above 1 is faster "
        "than PyTorch. Share of the limit and memory are explained in the script. " + args.note,
        "",
        "| work | program | rate | × | share of the limit | memory |",
        "| --- | --- | --- | --- | --- | --- |",
        *report.rows,
    ]
    if report.profiles:
        lines += ["", "## What capjax spends its time on", *report.profiles]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
