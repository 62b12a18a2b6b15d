"""How a caption came about: its words with what else was likely, where the model looked, and the beam as a tree."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from capjax.attribution import METHODS
from capjax.captioning.generator import Caption, caption_of, search_function
from capjax.captioning.loaded_model import LoadedModel
from capjax.data.input_pipeline import pad_captions
from capjax.decoding.beam_search import Candidates
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.report.explanation import END, Branch, ExplainedWord, Explanation, LikelyWord
from capjax.types import SPECIAL_IDS, Features

_NUM_LIKELY = 5


class Explainer:
    """Explains captions of one model, compiled once for captions of up to so many words, and again for longer ones."""

    def __init__(self, model: LoadedModel, method: str | None = None, max_words: int = 20) -> None:
        """Prepare to explain.

        Args:
            model: that wrote, or might have written, the captions.
            method: of the heat, see `capjax.attribution`; by default attention if the decoder has it, else occlusion if
                it is shown images, else none.
            max_words: that captions usually have at most, the end included: `max_length` of a search.

        Raises:
            CapjaxError: if there is no such method.
        """
        if method is not None and method not in METHODS:
            raise CapjaxError(f"expected a method out of {', '.join(METHODS)}, got {method!r}")
        self._method, self._captioner, self._attends = method, model.captioner, None
        self._longest = model.captioner.max_length
        self._vocabulary, self._max_words = model.vocabulary, min(max_words, self._longest or max_words)
        self._variables = jax.device_put(model.variables)
        self._likely = jax.jit(partial(_likely, model.captioner))
        self._heat = {name: jax.jit(partial(heat, model.captioner)) for name, heat in METHODS.items()}

    def __call__(self, visual: UInt8[np.ndarray, "S S 3"] | Features, caption: Caption | str) -> Explanation:
        """Explain a caption.

        Args:
            visual: the image as the encoder sees it, or its features (for attention alone).
            caption: that a search found, token by token; or any sentence, whose words that the vocabulary lacks count
                as unknown.

        Raises:
            CapjaxError: if the method does not work with this model, or the caption is longer than any of its own.
        """
        if isinstance(caption, str):
            ids, texts = self._vocabulary.encode(caption)[1:], [*self._vocabulary.tokenize(caption), END]
        else:
            ids, texts = caption.tokens, [self._word(token) for token in caption.tokens]
        num_words = len(ids)
        if self._longest and num_words > self._longest:
            raise CapjaxError(
                f"expected a caption of at most {self._longest - 1} words, for which the decoder was built, got "
                f"{num_words - 1}"
            )
        whole = np.asarray([SPECIAL_IDS.start, *ids], np.int32)
        tokens = jnp.asarray(pad_captions([whole], max(num_words, self._max_words) + 1)["tokens"])
        inputs = jax.tree.map(lambda x: x[None], visual)
        method = self._method
        if method is None:
            method = "attention" if self.attends(visual) else "" if isinstance(visual, Features) else "occlusion"
        heat = np.asarray(self._heat[method](self._variables, inputs, tokens))[:num_words] if method else None
        probabilities, best, which = (np.asarray(x).tolist() for x in self._likely(self._variables, inputs, tokens))
        words = tuple(
            ExplainedWord(
                text,
                probabilities[i],
                tuple(LikelyWord(self._word(k), p) for k, p in zip(which[i], best[i], strict=True)),
            )
            for i, text in enumerate(texts)
        )
        sentence = caption if isinstance(caption, str) else caption.text
        return Explanation(sentence, words, heat, method.replace("_", " "))

    def attends(self, visual: UInt8[np.ndarray, "S S 3"] | Features) -> bool:
        """Tell whether the decoder has attention to such an image."""
        if self._attends is None:
            inputs = jax.tree.map(lambda x: x[None], visual)
            output = jax.eval_shape(self._captioner.apply, self._variables, inputs, np.zeros((1, 1), np.int32))
            self._attends = "attention" in output.extras
        return self._attends

    def _word(self, token: int) -> str:
        return END if token == SPECIAL_IDS.end else self._vocabulary.words[token]


def _likely(
    captioner: Any, variables: Any, inputs: Any, tokens: Int[Array, "1 T"]
) -> tuple[Float[Array, " L"], Float[Array, "L K"], Int[Array, "L K"]]:
    """Return the probability of every word of a caption, and the most likely ones with theirs."""
    (probabilities,) = jax.nn.softmax(captioner.apply(variables, inputs, tokens[:, :-1]).logits)
    best, which = jax.lax.top_k(probabilities, min(_NUM_LIKELY, probabilities.shape[-1]))
    return probabilities[jnp.arange(probabilities.shape[0]), tokens[0, 1:]], best, which


class WatchedSearch:
    """Captions one image at a time, and keeps what the search did."""

    def __init__(self, model: LoadedModel, settings: DecoderSettings) -> None:
        """Prepare to search.

        Raises:
            CapjaxError: if the settings do not go with the model.
        """
        self._vocabulary, self._seed = model.vocabulary, settings.seed
        self._steps: list[Candidates] = []
        find = search_function([model.captioner], model.vocabulary, settings, watch=self._steps.append)
        self._program, self._variables = jax.jit(find), jax.device_put([model.variables])

    def __call__(self, image: UInt8[np.ndarray, "S S 3"], image_id: int) -> tuple[Caption, list[Branch]]:
        """Caption an image; return as well all that the beams tried, nothing for a search without beams."""
        self._steps.clear()
        seed, ids = np.uint32(self._seed), np.asarray([image_id]).astype(np.uint32)
        found = self._program(self._variables, image[None], seed, ids)
        (tokens,), (log_probs,) = np.asarray(found.tokens), np.asarray(found.log_probs)
        jax.effects_barrier()  # the last choice was told
        caption = caption_of(image_id, tokens, log_probs, self._vocabulary)
        return caption, branches_of(self._steps, tokens[0], self._vocabulary.words)


def branches_of(steps: Sequence[Candidates], chosen: Int[np.ndarray, " L"], words: Sequence[str]) -> list[Branch]:
    """Make a tree of what a beam search chose for one image.

    Args:
        steps: the candidates [1, M] that lived on, step by step, as `Watch` is told them.
        chosen: the tokens of the caption, filled up to the greatest length.
        words: of the vocabulary.

    Returns:
        The words of all beams, parents first, those of a step beside each other.
    """
    branches: list[Branch] = []
    of_path: dict[tuple[int, ...], int] = {}  # groups of diverse beams may say the same
    of_slot: dict[int, tuple[int, ...]] = {slot: () for slot in range(steps[0].parents.shape[1])} if steps else {}
    for i, step in enumerate(steps):
        now: dict[int, tuple[int, ...]] = {}
        choice = zip(step.parents[0].tolist(), step.tokens[0].tolist(), step.scores[0].tolist(), strict=True)
        for slot, (parent, token, score) in enumerate(choice):
            if score == -np.inf or parent not in of_slot:
                continue
            before = of_slot[parent]
            path = (*before, token)
            is_end = token == SPECIAL_IDS.end
            if path not in of_path:
                of_path[path] = len(branches)
                on_the_way = path == tuple(chosen[: len(path)].tolist())
                text, is_whole = END if is_end else words[token], is_end or i == len(chosen) - 1
                branches.append(Branch(text, of_path.get(before, -1), score, on_the_way, is_whole))
            if not is_end:
                now[slot] = path
        of_slot = now
    return branches
