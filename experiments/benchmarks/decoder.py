"""The reference decoder against PyTorch: training words/s, greedy and beam-search captions/s, interleaved in one run.

    python experiments/benchmarks/decoder.py --out=experiments/results/decoder.md

The PyTorch program is what a competent user would write: `nn.LSTM` over the padded batch, `CrossEntropyLoss` over the
words only (`ignore_index`); or, as "packed", the vocabulary layer on the words only, with and without a packed LSTM
(`pack_padded_sequence`), of which the faster counts; batched greedy and beam search. Both sides compute in float32 with
all cores on the same batches and write captions of exactly 20 words, so that neither gains by a model that happens to
stop early. Memory is handed out as `capjax` sets it (`capjax.host_memory`), for both sides.

The share of the limit is what the matrix products alone would take, over the time of the row: those of the words that
count, each with the fastest of OpenBLAS (NumPy), PyTorch and XLA (`limits.py`).
"""

import argparse
import itertools
import pathlib
import platform
from collections.abc import Callable
from functools import partial

from capjax.host_memory import keep_freed_memory

keep_freed_memory()  # before there are threads

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from limits import Product, seconds_of
from timing import interleave, versus
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from capjax.decoding.settings import DecoderSettings, build_search
from capjax.models import Captioner, InitInjectDecoder
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

    def loss(self, pooled: torch.Tensor, tokens: torch.Tensor, packed: bool, packed_lstm: bool = False) -> torch.Tensor:
        """Mean cross-entropy of the words."""
        state = self.image(pooled)[None]
        if packed_lstm:
            lengths = (tokens[:, 1:] != 0).sum(dim=1)
            words = pack_padded_sequence(
                self.embedding(tokens[:, :-1]), lengths, batch_first=True, enforce_sorted=False
            )
            outputs, _ = self.lstm(words, (state, state))
            targets = pack_padded_sequence(tokens[:, 1:], lengths, batch_first=True, enforce_sorted=False)
            return nn.functional.cross_entropy(self.logits(outputs.data), targets.data)
        outputs, _ = self.lstm(self.embedding(tokens[:, :-1]), (state, state))
        targets = tokens[:, 1:]
        if packed:
            words = targets != 0
            return nn.functional.cross_entropy(self.logits(outputs[words]), targets[words])
        return nn.functional.cross_entropy(self.logits(outputs).flatten(0, 1), targets.flatten(), ignore_index=0)

    @torch.no_grad()
    def greedy(self, pooled: torch.Tensor, length: int) -> torch.Tensor:
        """Caption a batch greedily with words only, `length` of them."""
        state = self.image(pooled)[None]
        state = (state, state)
        token, tokens = torch.full((len(pooled),), 2), []
        for _ in range(length):
            output, state = self.lstm(self.embedding(token)[:, None], state)
            logits = self.logits(output[:, 0])
            logits[:, :4] = -torch.inf
            token = logits.argmax(dim=1)
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    @torch.no_grad()
    def beam(self, pooled: torch.Tensor, length: int, size: int) -> torch.Tensor:
        """Search with `size` beams for captions of `length` words, batched; return the best."""
        batch = len(pooled)
        state = self.image(pooled).repeat_interleave(size, dim=0)[None]
        state = (state, state)
        scores = torch.full((batch, size), -torch.inf)
        scores[:, 0] = 0.0
        token = torch.full((batch * size,), 2)
        tokens = torch.zeros((batch, size, length), dtype=torch.long)
        rows = torch.arange(batch)[:, None]
        for t in range(length):
            output, state = self.lstm(self.embedding(token)[:, None], state)
            log_probs = self.logits(output[:, 0]).log_softmax(dim=1).view(batch, size, -1)
            log_probs[:, :, :4] = -torch.inf
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


def table_rows(
    work: str, times: dict[str, np.ndarray], amount: float, unit: str, baseline: str, limit: float
) -> list[str]:
    """Format rates, ratios to the baseline, taken round by round, and shares of the limit (seconds)."""
    rows = []
    for name, seconds in times.items():
        ratio, share = versus(times[baseline], seconds), limit / np.median(seconds)
        rows.append(f"| {work} | {name} | {amount / np.median(seconds):,.0f} {unit} | {ratio} | {share:.0%} |")
    return rows


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


def benchmark_step(
    batch_size: int,
    label: str,
    sizes: dict[str, int],
    model: Captioner,
    variables: object,
    theirs: TorchCaptioner,
    rounds: int,
) -> list[str]:
    """Measure training steps."""
    rng, mesh = np.random.default_rng(0), make_mesh()
    tokens = make_tokens(rng, batch_size, sizes["vocab"])
    pooled = rng.normal(size=(batch_size, NUM_FEATURES)).astype(np.float32)
    lengths = (tokens[:, 1:] != 0).sum(axis=1)
    optimizer = optax.adam(1e-3)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    state = [replicate(TrainState.create(jax.tree.map(jnp.copy, variables), optimizer), mesh)]
    batch = {"features": Features(pooled), "tokens": tokens, "mask": tokens[:, 1:] != 0}
    batch = shard_batch(batch | {"image_id": np.arange(batch_size), "valid": np.ones(batch_size, bool)}, mesh)

    def our_step() -> None:
        state[0], metrics = step(state[0], batch, jax.random.key(0))
        jax.block_until_ready(metrics)

    torch_optimizer = torch.optim.Adam(theirs.parameters(), 1e-3, fused=True)
    torch_batch = torch.tensor(pooled), torch.tensor(tokens, dtype=torch.long)

    def their_step(*packed: bool) -> None:
        torch_optimizer.zero_grad()
        theirs.loss(*torch_batch, *packed).backward()
        torch_optimizer.step()

    times = interleave(
        {
            "PyTorch": lambda: their_step(False),
            "PyTorch, packed": lambda: their_step(True),
            "PyTorch, packed, the LSTM too": lambda: their_step(True, True),
            "capjax": our_step,
        },
        rounds,
    )
    best = min(("PyTorch, packed", "PyTorch, packed, the LSTM too"), key=lambda name: np.median(times[name]))
    kept = {"PyTorch": times["PyTorch"], best: times[best], "capjax": times["capjax"]}
    work = f"train step, batch {batch_size}, {label}"
    limit = seconds_of(training_products(sizes, lengths))
    return table_rows(work, kept, int(lengths.sum()), "words/s", best, limit)


def benchmark(label: str, sizes: dict[str, int], rounds: int) -> list[str]:
    """Measure one model size."""
    rng = np.random.default_rng(0)
    decoder = InitInjectDecoder(
        sizes["vocab"], sizes["embed"], sizes["hidden"], sizes["bottleneck"], sizes["bottleneck"]
    )
    model = Captioner(decoder)
    variables = jax.jit(model.init)(
        jax.random.key(0), Features(jnp.zeros((1, NUM_FEATURES))), jnp.zeros((1, 1), jnp.int32)
    )
    theirs = TorchCaptioner(**sizes)
    rows = []

    for batch_size in (64, 256):
        rows += benchmark_step(batch_size, label, sizes, model, variables, theirs, rounds)

    for batch_size in (1, 64, 256):
        pooled = rng.normal(size=(batch_size, NUM_FEATURES)).astype(np.float32)
        for name, settings, their_search in (
            ("greedy", DecoderSettings(min_length=20), theirs.greedy),
            ("beam 3", DecoderSettings(method="beam", beam_size=3, min_length=20), lambda x, n: theirs.beam(x, n, 3)),
        ):
            if name == "beam 3" and batch_size == 256:
                continue
            search = build_search(settings, SPECIAL_IDS)

            @jax.jit
            def caption(weights: object, features: Features, search: Callable = search) -> object:
                context, carry = model.apply(weights, features, method="start")
                return search(partial(model.apply, weights, context, method="decode_step"), carry, None)

            features = Features(jnp.asarray(pooled))
            theirs_in = torch.tensor(pooled)
            programs = {
                "PyTorch": lambda x=theirs_in, f=their_search: f(x, 20),
                "capjax": lambda f=caption, x=features: jax.block_until_ready(f(variables, x)),
            }
            times = interleave(programs, rounds)
            limit = seconds_of(decoding_products(sizes, batch_size, settings.beam_size if name != "greedy" else 1, 20))
            work = f"{name}, batch {batch_size}, {label}"
            rows += table_rows(work, times, batch_size, "captions/s", "PyTorch", limit)
    return rows


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/decoder.md"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    args = parser.parse_args()
    lines = [
        "# Decoder against PyTorch",
        "",
        "`python experiments/benchmarks/decoder.py`",
        "",
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}; {args.rounds} interleaved rounds. × "
        "is the time of PyTorch (of a training step: packed) over that of the row, median over rounds [min–max]; above "
        "1 is faster than PyTorch. The share of the limit is explained in the script. " + args.note,
        "",
        "| work | program | rate | × | share of the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, sizes in SIZES.items():
        for row in benchmark(label, sizes, args.rounds):
            lines.append(row)
            print(row, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
