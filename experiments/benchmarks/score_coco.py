"""Compare capjax's scores with the published scorer on real captions: differences and times, metric by metric.

    python experiments/benchmarks/score_coco.py FOLDER

FOLDER (default: $CAPJAX_TEST_DATA) holds `coco/captions_4000_images.json` and `coco/system_outputs/*.json`. Needs
pycocoevalcap, Java and Linux. Writes experiments/results/score_coco.md.

Times are CPU seconds of this process and of Java, so that other work on the machine does not count. Nor does Java's
start-up: the published tokeniser is timed on everything less its time on one caption, METEOR after a first caption made
it load its tables; capjax's reading of METEOR's tables is left out likewise. References are counted in every time, as
no metric of the published scorer keeps anything of them; with references kept from an earlier call is a line apart.
"""

import argparse
import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from capjax.metrics import bleu, cider, meteor, meteor_resources
from capjax.metrics.bootstrap import confidence_intervals
from capjax.metrics.coco_caption import BLEU_NAMES, DEFAULT_METRICS, References, score, words
from capjax.metrics.coco_files import read_references, read_results
from capjax.metrics.ngrams import count_ngrams
from capjax.metrics.rouge_l import rouge_l
from capjax.text import ptb_lexer, ptb_tokenizer

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "score_coco.md"


def cpu_seconds(java: subprocess.Popen[bytes] | None = None) -> float:
    """Return the CPU seconds used so far by this process, its ended children, and a Java process that still runs."""
    children = os.times()
    seconds = time.process_time() + children.children_user + children.children_system
    if java is not None:
        fields = pathlib.Path(f"/proc/{java.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def timed(
    function: Callable[..., Any], *arguments: Any, java: subprocess.Popen[bytes] | None = None
) -> tuple[Any, float]:
    """Return the function's result and its CPU seconds, quietly."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = cpu_seconds(java)
        result = function(*arguments)
        return result, cpu_seconds(java) - start


def published_tokens(captions: list[str]) -> list[list[str]]:
    """Tokenise with the published tokeniser."""
    tokenised = PTBTokenizer().tokenize({n: [{"caption": caption}] for n, caption in enumerate(captions)})
    return [[token for token in tokenised[n][0].split(" ") if token] for n in range(len(captions))]


def our_bleu(references: References, hypotheses: list[list[str]]) -> list[Any]:
    """BLEU from tokens, nothing kept."""
    counted = count_ngrams([words(tokens) for captions in references.tokens for tokens in captions])
    maxima = bleu.reference_maxima(counted, references.image_of_caption)
    captions = count_ngrams([words(tokens) for tokens in hypotheses], counted.table)
    return bleu.bleu(captions, maxima, counted.lengths, references.image_of_caption)


def our_cider_d(references: References, hypotheses: list[list[str]]) -> Any:
    """CIDEr-D from tokens, nothing kept."""
    counted = count_ngrams([words(tokens) for captions in references.tokens for tokens in captions])
    df = cider.DocumentFrequencies.of_references(counted, references.image_of_caption)
    weighted = cider.weigh_references(counted, references.image_of_caption, df)
    return cider.cider_d(count_ngrams([words(tokens) for tokens in hypotheses], counted.table), weighted)


def our_cached_cider_d(references: References, hypotheses: list[list[str]]) -> Any:
    """CIDEr-D with references kept, as during training."""
    captions = count_ngrams([words(tokens) for tokens in hypotheses], references.counted.table)
    return cider.cider_d(captions, references.weighted(references.df))


def our_meteor(references: References, hypotheses: list[list[str]]) -> tuple[Any, float]:
    """METEOR, and the seconds it spent reading tables."""
    seconds = 0.0
    original = meteor.load_paraphrases

    def clocked(phrases: Any) -> Any:
        nonlocal seconds
        start = cpu_seconds()
        table = original(phrases)
        seconds += cpu_seconds() - start
        return table

    meteor.load_paraphrases = clocked
    try:
        return meteor.compute(hypotheses, references.tokens)[0], seconds
    finally:
        meteor.load_paraphrases = original


def compare_tokenisers(captions: list[str]) -> list[str]:
    """Return the table lines about tokenisation."""
    ptb_tokenizer.tokenize("warm up: don't count the tables it's building")
    expected, published_seconds = timed(published_tokens, captions)
    _, start_up = timed(published_tokens, captions[:1])
    ptb_tokenizer._known_chunks.clear()
    found, seconds = timed(ptb_tokenizer.tokenize_captions, captions)
    different = sum(a != b for a, b in zip(found, expected, strict=True))
    lexed, lexed_seconds = timed(lambda: [ptb_lexer.lex(caption) for caption in captions])
    assert len(lexed) == len(captions)
    java = published_seconds - start_up
    return [
        f"Captions with other tokens: **{different} of {len(captions):,}**.",
        "",
        "| tokenisation | CPU seconds | ratio |",
        "| --- | ---: | ---: |",
        f"| published, Java start-up of {start_up:.1f} s not counted | {java:.2f} | |",
        f"| capjax | {seconds:.2f} | {java / seconds:.1f} |",
        f"| capjax, every caption through the rules (no short cut for plain words) | {lexed_seconds:.2f} | |",
    ]


def compare_system(name: str, references: References, tokens: list[list[str]], judge: Meteor) -> list[tuple]:
    """Return (system, metric, ours, published, largest difference on an image, our seconds, published seconds)."""
    truth = {n: [" ".join(c) for c in captions] for n, captions in enumerate(references.tokens)}
    captions = {n: [" ".join(caption)] for n, caption in enumerate(tokens)}
    rows = []

    def add(metric: str, ours: Any, corpus: float, per_image: Any, seconds: float, published_seconds: float) -> None:
        difference = np.abs(ours.per_image - np.asarray(per_image)).max()
        rows.append((name, metric, ours.corpus, float(corpus), difference, seconds, published_seconds))

    (corpus, per_image), published_seconds = timed(Bleu(4).compute_score, truth, captions)
    ours, seconds = timed(our_bleu, references, tokens)
    for n, metric in enumerate(BLEU_NAMES):
        add(metric, ours[n], corpus[n], per_image[n], seconds, published_seconds)
    (corpus, per_image), published_seconds = timed(Rouge().compute_score, truth, captions)
    ours, seconds = timed(rouge_l, tokens, references.tokens)
    add("ROUGE-L", ours, corpus, per_image, seconds, published_seconds)
    (corpus, per_image), published_seconds = timed(Cider().compute_score, truth, captions)
    ours, seconds = timed(our_cider_d, references, tokens)
    add("CIDEr-D", ours, corpus, per_image, seconds, published_seconds)
    our_cached_cider_d(references, tokens)
    ours, seconds = timed(our_cached_cider_d, references, tokens)
    add("CIDEr-D, references kept", ours, corpus, per_image, seconds, published_seconds)
    (corpus, per_image), published_seconds = timed(judge.compute_score, truth, captions, java=judge.meteor_p)
    (ours, table_seconds), seconds = timed(our_meteor, references, tokens)
    add("METEOR", ours, corpus, per_image, seconds - table_seconds, published_seconds)
    print(f"{name}: tables of METEOR read in {table_seconds:.1f} s", file=sys.stderr)
    return rows


def score_lines(references: References, systems: dict[str, dict[int, str]]) -> list[str]:
    """Return the table of scores with intervals, as `capjax score` gives them."""
    lines = ["| metric (×100) | " + " | ".join(systems) + " |", "| --- |" + " ---: |" * len(systems)]
    found = {name: score(references, hypotheses) for name, hypotheses in systems.items()}
    intervals = {name: confidence_intervals(scores.results) for name, scores in found.items()}
    for metric in DEFAULT_METRICS:
        cells = [
            f"{100 * found[name].corpus[metric]:.2f} [{100 * intervals[name][metric].low:.2f},"
            f" {100 * intervals[name][metric].high:.2f}]"
            for name in systems
        ]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return lines


def summary_lines(rows: list[tuple]) -> list[str]:
    """Return one line a metric: the median ratio of times over the systems, with its range."""
    lines = ["| metric | published, s | capjax, s | ratio [range over systems] |", "| --- | ---: | ---: | ---: |"]
    shown = {"BLEU-4": "BLEU-1 to BLEU-4"}
    for metric in ("BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr-D, references kept", "METEOR"):
        ours = [row[5] for row in rows if row[1] == metric]
        published = [row[6] for row in rows if row[1] == metric]
        ratios = sorted(p / o for o, p in zip(ours, published, strict=True))
        lines.append(
            f"| {shown.get(metric, metric)} | {statistics.median(published):.2f} | {statistics.median(ours):.3f} |"
            f" {statistics.median(ratios):.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}] |"
        )
    return lines


def main() -> None:
    """Run the comparison and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("CAPJAX_TEST_DATA"), type=pathlib.Path)
    args = parser.parse_args()
    if args.folder is None:
        parser.error("name the folder with coco/, or set CAPJAX_TEST_DATA")
    captions = read_references(args.folder / "coco" / "captions_4000_images.json")
    files = sorted((args.folder / "coco" / "system_outputs").glob("*.json"))
    systems = {file.stem: read_results(file) for file in files}
    references = References(captions)
    everything = [text for texts in captions.values() for text in texts]
    everything += [hypotheses[i] for hypotheses in systems.values() for i in captions]
    token_lines = compare_tokenisers(everything)

    judge = Meteor()
    timed(judge.compute_score, {0: ["a dog"]}, {0: ["a dog"]})  # waits until its tables are loaded
    meteor_resources.load_lexicon()
    rows = []
    for name, hypotheses in systems.items():
        tokens = ptb_tokenizer.tokenize_captions([hypotheses[i] for i in captions])
        rows += compare_system(name, references, tokens, judge)

    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr.splitlines()[0]
    lines = [
        "# Scores side by side with the published scorer",
        "",
        "    python experiments/benchmarks/score_coco.py FOLDER",
        "",
        f"{len(captions):,} COCO images with {len(everything) - len(systems) * len(captions):,} references, captions of"
        f" {len(systems)} published systems; pycocoevalcap {importlib.metadata.version('pycocoevalcap')}, {java},"
        f" Python {platform.python_version()}, NumPy {np.__version__}, one of"
        f" {os.cpu_count()} shared cores. Decoder settings of the three systems are those of their authors; the result"
        " files do not state them.",
        "",
        "## Scores with 95 % intervals (1,000 bootstrap samples of the images)",
        "",
        *score_lines(references, systems),
        "",
        "## Tokens",
        "",
        *token_lines,
        "",
        "## Times",
        "",
        f"CPU seconds for {len(captions):,} captions; Java's start-up and the loading of METEOR's tables not counted,"
        " as the top of the script explains.",
        "",
        *summary_lines(rows),
        "",
        "## Differences",
        "",
        "Unscaled scores; the last column is the largest absolute difference on any of the images.",
        "",
        "| system | metric | capjax | published | difference | per image |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {metric} | {ours:.6f} | {published:.6f} | {abs(ours - published):.1e} | {difference:.1e} |"
            for name, metric, ours, published, difference, _, _ in rows
            if "kept" not in metric
        ),
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
