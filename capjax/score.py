"""The job `capjax score`: scores anybody's COCO results files against references, without starting JAX.

    capjax score --references=captions_val2014.json --results=a.json --results=b.json --out=scores

It prints a table with confidence intervals for each results file, compares the second and later files with the first,
and writes `metrics.json`, `per_image.jsonl` and `comparison.json`.
"""

import argparse
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from capjax.errors import CapjaxError
from capjax.host.disk import local_path, write_atomically
from capjax.metrics.bootstrap import Comparison, compare
from capjax.metrics.coco_caption import DEFAULT_METRICS, METRICS, References, Scores, check_images, score
from capjax.metrics.coco_files import read_references, read_results
from capjax.metrics.ngrams import DocumentFrequencies
from capjax.metrics.score_report import (
    comparison_dict,
    comparison_table,
    metric_names,
    score_report,
    score_table,
    write_scores,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `capjax score`."""
    file = {"type": os.path.expanduser}
    parser.add_argument("--references", **file, required=True, help="COCO annotation file with the reference captions")
    parser.add_argument(
        "--results", **file, required=True, action="append", help="COCO results file; repeat it to compare"
    )
    parser.add_argument(
        "--out",
        type=local_path,
        help="folder for metrics.json and per_image.jsonl (a subfolder for each of several)",
    )
    parser.add_argument(
        "--metrics", default=",".join(DEFAULT_METRICS), help=f"comma-separated, of {', '.join(METRICS)}"
    )
    parser.add_argument(
        "--images",
        choices=("references", "results"),
        default="references",
        help="which images count: all of the references (default) or those of the results, a part of them",
    )
    df = {"type": local_path, "metavar": "FILE"}
    parser.add_argument("--df", **df, help="saved document frequencies for CIDEr, CIDEr-D (default: of the references)")
    parser.add_argument("--save_df", **df, help="write the document frequencies of the references to this .npz file")
    parser.add_argument(
        "--bootstrap_samples", type=int, default=1000, help="draws for intervals; 0: none (default: 1000)"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="level of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the shuffled images (default: 0)")
    parser.add_argument(
        "--train_captions", **file, help="COCO annotation file of the training set: novelty and leakage"
    )


def run(args: argparse.Namespace) -> int:
    """Score the files, print tables, write files; return the exit status."""
    metrics = metric_names(args.metrics)
    if args.bootstrap_samples < 0 or args.bootstrap_samples == 1:
        raise CapjaxError(f"--bootstrap_samples: expected 0 (none) or at least 2, got {args.bootstrap_samples}")
    if not 0 < args.confidence < 1:
        raise CapjaxError(f"--confidence: expected a level between 0 and 1, got {args.confidence}")
    if args.seed < 0:
        raise CapjaxError(f"--seed: expected 0 or more, got {args.seed}")
    captions = read_references(args.references)
    results = {path: read_results(path) for path in dict.fromkeys(args.results)}
    train = read_references(args.train_captions) if args.train_captions else None
    df = DocumentFrequencies.load(args.df) if args.df else None
    captions = _images_that_count(captions, results, args.images)
    for path, hypotheses in results.items():
        _check_images(path, captions, hypotheses, args.images)
    references = References(captions)
    if args.save_df:
        references.df.save(args.save_df)

    reports, all_scores = {}, {}
    for (path, hypotheses), name in zip(results.items(), _names(results), strict=True):
        scores = score(references, hypotheses, metrics, df)
        if not scores.corpus:
            raise CapjaxError(f"none of what was asked for can be computed: {'; '.join(scores.skipped.values())}")
        report = score_report(
            scores,
            references,
            hypotheses,
            df=df,
            train=train,
            bootstrap_samples=args.bootstrap_samples,
            confidence=args.confidence,
            seed=args.seed,
            decoder="unknown: a COCO results file does not state it",
        )
        report["settings"] |= {"images": args.images, "df_file": args.df and str(args.df)}
        print(score_table(path, scores, report, references))
        reports[name], all_scores[name] = report, scores
    comparisons = {}
    if len(all_scores) > 1 and args.bootstrap_samples:
        first, *others = all_scores
        for other in others:
            comparisons[other] = compare(
                all_scores[first].results,
                all_scores[other].results,
                args.bootstrap_samples,
                args.confidence,
                args.seed,
            )
            print(comparison_table(first, other, comparisons[other], args.bootstrap_samples, args.confidence))
    if args.out:
        _write(args.out, reports, all_scores, comparisons)
    return 0


def _images_that_count(
    captions: dict[int, list[str]], results: Mapping[str, Mapping[int, str]], choice: str
) -> dict[int, list[str]]:
    if choice == "references":
        return captions
    first = next(iter(results.values()))
    return {image_id: texts for image_id, texts in captions.items() if image_id in first}


def _check_images(path: str, captions: Mapping[int, Any], hypotheses: Mapping[int, str], choice: str) -> None:
    try:
        check_images(tuple(captions), hypotheses)
    except CapjaxError as error:
        part = choice == "references" and any(i in captions for i in hypotheses) and len(hypotheses) < len(captions)
        hint = "; --images=results scores the images of the results alone" if part else ""
        raise CapjaxError(f"{path}: {error}{hint}") from error


def _names(results: Mapping[str, Any]) -> list[str]:
    stems = [pathlib.Path(path).stem for path in results]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{number}-{stem}" for number, stem in enumerate(stems, 1)]


def _write(
    folder: pathlib.Path,
    reports: Mapping[str, Mapping[str, Any]],
    all_scores: Mapping[str, Scores],
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> None:
    for name, report in reports.items():
        write_scores(folder if len(reports) == 1 else folder / name, report, all_scores[name])
    if comparisons:
        first = next(iter(reports))
        content = {other: comparison_dict(comparison) for other, comparison in comparisons.items()}
        text = json.dumps({"baseline": first, "compared": content}, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "comparison.json", text + "\n")
