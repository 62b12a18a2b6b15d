"""METEOR 1.5 (Denkowski and Lavie 2014) with its published English parameters.

The match counts of a caption and its best reference come from the published Java program; the score is computed from
them here, for single captions as for sums over a corpus, so that confidence intervals can be had.
"""

import functools
import importlib.util
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from capjax.errors import CapjaxError
from capjax.metrics.metric_result import MetricResult

# Denkowski and Lavie 2014, table 1, English ranking task.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

# Columns of the statistics: lengths and function words of caption and reference; for each stage the matched content
# words of caption and reference and their matched function words; chunks; matched words of caption and reference.
NUM_STATISTICS = 23
_CHUNKS = 20
_JAVA_SECONDS_PER_IMAGE = 5


def compute(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[MetricResult, str]:
    """Return METEOR for tokenised captions and what computed it.

    Raises:
      CapjaxError: the published program is not installed or fails.
    """
    statistics = _java_statistics(hypotheses, references)
    return result_from_statistics(statistics), "METEOR 1.5 of pycocoevalcap (Java)"


def result_from_statistics(statistics: Float[np.ndarray, "N S"]) -> MetricResult:
    """Return the scores from the 23 match statistics of each caption with its best reference."""
    per_image = meteor_from_sums(statistics)
    sums = statistics.copy()
    sums[_is_perfect(statistics), _CHUNKS] = 0  # the published program does not add up the chunk of a perfect match
    return MetricResult(per_image, sums, lambda totals, num_images: meteor_from_sums(totals))


def meteor_from_sums(sums: Float[np.ndarray, "*samples S"]) -> Float[np.ndarray, "*samples"]:
    """Denkowski and Lavie 2014, section 3: weighted F-mean of the matched words, less the fragmentation penalty."""
    lengths, function_words = sums[..., 0:2], sums[..., 2:4]
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    content, function = stages[..., 0:2], stages[..., 2:4]
    weighted = _STAGE_WEIGHTS @ (_DELTA * content + (1 - _DELTA) * function)
    weighted_lengths = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / weighted_lengths, -1, 0)
        f_mean = 1.0 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragments = np.where(_is_perfect(sums), 0.0, sums[..., _CHUNKS] / (sums[..., 21:23].sum(axis=-1) / 2))
        scores = f_mean * (1.0 - _GAMMA * fragments**_BETA)
    return np.where(np.isnan(scores), 0.0, np.maximum(scores, 0.0))


def _is_perfect(sums: Float[np.ndarray, "*samples S"]) -> np.ndarray:
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)
    return (stages.sum(axis=(-3, -2)) == sums[..., 0:2]).all(axis=-1) & (sums[..., _CHUNKS] == 1)


@functools.cache
def published_package() -> pathlib.Path | None:
    """Return the `meteor` folder of the installed pycocoevalcap, with its jar and paraphrase table, or None."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = pathlib.Path(next(iter(spec.submodule_search_locations))) / "meteor"
    return folder if (folder / "meteor-1.5.jar").exists() else None


def _java_statistics(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Float[np.ndarray, "N S"]:
    """Ask the published program for the match statistics of each caption with its best reference."""
    folder = published_package()
    if folder is None:
        raise CapjaxError("METEOR needs the published package: pip install pycocoevalcap")
    if shutil.which("java") is None:
        raise CapjaxError("METEOR needs Java, and there is no `java` on the PATH")
    lines = []
    for hypothesis, captions in zip(hypotheses, references, strict=True):
        texts = [" ".join(tokens).replace("|||", "") for tokens in (*captions, hypothesis)]
        lines.append(" ||| ".join(["SCORE", *texts]) + "\n")
    command = [
        "java",
        "-Xmx1G",
        "-Duser.language=en",
        "-jar",
        "meteor-1.5.jar",
        "-",
        "-",
        "-stdio",
        "-l",
        "en",
        "-norm",
    ]
    try:
        # One write and one read for everything: no dialogue over pipes that could stall or break half-way.
        process = subprocess.run(
            command,
            cwd=folder,
            input="".join(lines).encode("utf-8", "replace"),
            capture_output=True,
            timeout=120 + _JAVA_SECONDS_PER_IMAGE * len(lines),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CapjaxError(f"the published METEOR program did not run: {error}") from error
    answers = process.stdout.decode("ascii", "replace").splitlines()
    rows = [_numbers(answer) for answer in answers]
    if process.returncode or len(rows) != len(lines) or any(len(row) != NUM_STATISTICS for row in rows):
        errors = process.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = errors[0] if errors else f"{len(rows)} answers to {len(lines)} captions"
        raise CapjaxError(f"the published METEOR program failed (exit status {process.returncode}): {reason}")
    return np.array(rows)


def _numbers(line: str) -> list[float]:
    try:
        return [float(item) for item in line.split()]
    except ValueError:
        return []
