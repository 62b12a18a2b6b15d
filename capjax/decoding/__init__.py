"""Searches over any decoder that offers `decode_step`: greedy, sampling, beam search and its variants.

`build_search(DecoderSettings(...), special_ids)` is the front door; the modules hold one search each.
"""

from capjax.decoding.ensemble import ensemble
from capjax.decoding.hypotheses import Hypotheses
from capjax.decoding.sampling import image_keys
from capjax.decoding.settings import DecoderSettings, Search, build_search

__all__ = ["DecoderSettings", "Hypotheses", "Search", "build_search", "ensemble", "image_keys"]
