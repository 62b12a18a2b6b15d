"""A split that models captioned, and what metrics.json tells of it."""

import importlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capjax import data
from capjax.captioning.generator import Caption
from capjax.captioning.splits import SeenSplit
from capjax.decoding.settings import DecoderSettings
from capjax.metrics import caption_health
from capjax.metrics.coco_caption import References, Scores
from capjax.metrics.score_report import score_report
from capjax.text.ptb_tokenizer import tokenize
from capjax.types import SPECIAL_IDS


@dataclass(frozen=True)
class CaptionedSplit:
    """A split that was captioned.

    Attributes:
        seen: the split, and the models.
        settings: of the search.
        captions: in the order of its records.
        seconds: that they took.
    """

    seen: SeenSplit
    settings: DecoderSettings
    captions: Sequence[Caption]
    seconds: float

    @property
    def per_second(self) -> float:
        """How many captions a second were written."""
        return len(self.captions) / self.seconds

    def hypotheses(self, image_ids: Container[int]) -> dict[int, str]:
        """Return what was said of some images."""
        return {caption.image_id: caption.text for caption in self.captions if caption.image_id in image_ids}

    @cached_property
    def ailments(self) -> list[tuple[str, ...]]:
        """What is wrong with each caption whatever the image shows; no text has unknown words, of which tokens tell."""
        by_text = caption_health.ailments([caption.text for caption in self.captions])
        return [
            tuple(dict.fromkeys((*found, "unknown_word"))) if SPECIAL_IDS.unk in caption.tokens else found
            for caption, found in zip(self.captions, by_text, strict=True)
        ]

    @cached_property
    def judge(self) -> Any:
        """The module that tells whether a caption of such a picture is true, if there is one."""
        module = data.SOURCES[data.parse_name(self.seen.config.dataset.name).source].judge
        return importlib.import_module(module) if module else None

    @cached_property
    def verdicts(self) -> list[str | None]:
        """What the judge says of each caption."""
        pairs = zip(self.seen.records, self.captions, strict=True)
        return [self.judge and self.judge.verdict(record, caption.text) for record, caption in pairs]


def report_of(
    split: CaptionedSplit, scores: Scores, references: References, *, bootstrap_samples: int, command: str
) -> dict[str, Any]:
    """Return the content of metrics.json, but for a comparison.

    Args:
        split: the captions.
        scores: theirs.
        references: that they were scored against.
        bootstrap_samples: draws for the intervals, 0 for none.
        command: that this is, as anybody could give it again.
    """
    seen, hypotheses = split.seen, split.hypotheses(references.raw)
    report = score_report(
        scores, references, hypotheses, bootstrap_samples=bootstrap_samples, decoder=split.settings.to_dict()
    )
    unknown = {c.image_id for c, found in zip(split.captions, split.ailments, strict=True) if "unknown_word" in found}
    report["health"]["unknown_word"] = len(unknown & hypotheses.keys()) / len(hypotheses)
    report["settings"] |= {"dataset": seen.config.dataset.name, "split": seen.name, "num_models": len(seen.models)}
    report |= {
        "models": [model.summary for model in seen.models],
        "command": command,
        "captions_per_second": split.per_second,
        "exact_match": _share_of_exact_matches(references, hypotheses),
    }
    if split.judge:
        report["right"] = split.verdicts.count("right") / len(split.verdicts)
    return report


def _share_of_exact_matches(references: References, hypotheses: Mapping[int, str]) -> float:
    """Return how many of the captions, as they are scored, are one of their references."""
    pairs = zip(references.image_ids, references.tokens, strict=True)
    return sum(tokenize(hypotheses[image_id]) in said for image_id, said in pairs) / len(hypotheses)
