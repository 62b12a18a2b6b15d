"""Greedy search: the most probable next token, step after step."""

from collections.abc import Sequence

from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.logits_processors import LogitsProcessor
from capjax.decoding.rollout import rollout
from capjax.ops.top_k import arg_max
from capjax.types import Carry, DecodeStep, SpecialIds


def greedy_search(
    decode_step: DecodeStep,
    carry: Carry,
    special_ids: SpecialIds,
    *,
    max_length: int = 20,
    processors: Sequence[LogitsProcessor] = (),
) -> Hypotheses:
    """Caption a batch greedily; of equally probable tokens the one with the lowest id wins.

    Args:
      decode_step: the model.
      carry: its initial state, leaves with leading axis B.
      special_ids: ids of PAD, UNK, START and END.
      max_length: L, tokens per sentence at most (END, if it comes, included).
      processors: constraints on the next token; without any, PAD, START and UNK may be chosen.

    Returns:
      Hypotheses with K = 1.
    """
    return rollout(
        decode_step,
        carry,
        special_ids,
        max_length=max_length,
        processors=processors,
        choose_token=lambda step, logits: arg_max(logits),
    )
