"""Ensembles against means of probabilities computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.decoding import DecoderSettings, build_search, ensemble
from capjax.errors import CapjaxError
from capjax.types import SpecialIds


def constant_model(probs):
    """A decoder that always predicts `probs`, from logits that are not normalised."""
    logits = jnp.log(jnp.array(probs)) + 17.0
    return lambda carry, tokens: (carry + 1, jnp.broadcast_to(logits, (tokens.shape[0], logits.shape[0])))


def test_mean_of_probabilities():
    step = ensemble([constant_model([0.5, 0.25, 0.25]), constant_model([0.1, 0.1, 0.8]), constant_model([0, 1.0, 0])])
    carry, logits = step((jnp.zeros(2), jnp.ones(2), jnp.ones(2)), jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(np.exp(logits), [[0.2, 0.45, 0.35]] * 2, rtol=1e-5)
    assert [leaf.tolist() for leaf in carry] == [[1, 1], [2, 2], [2, 2]]


def test_tiny_probabilities_survive():
    logits = jnp.array([[0.0, -200.0]])
    step = ensemble([lambda carry, tokens: (carry, logits)] * 2)
    assert step((0, 0), jnp.zeros(1, jnp.int32))[1][0, 1] == pytest.approx(-200.0)


@pytest.mark.parametrize(
    "settings",
    [DecoderSettings(max_length=4), DecoderSettings(method="beam", max_length=4)],
    ids=lambda settings: settings.method,
)
def test_an_ensemble_says_what_no_member_prefers(settings):
    # Alone the models say 4 and 5; together 6. END after two words: the models' states count along.
    def model(favourite):
        def step(carry, tokens):
            probs = jnp.where(carry[:, None] >= 2, jax.nn.one_hot(3, 7), 0.55 * jax.nn.one_hot(favourite, 7))
            probs = jnp.where((carry[:, None] < 2) & (jnp.arange(7) == 6)[None], 0.45, probs)
            return carry + 1, jnp.log(probs)

        return step

    search = jax.jit(lambda a, b: build_search(settings, SpecialIds())(ensemble([model(4), model(5)]), (a, b), None))
    hypotheses = search(jnp.zeros(2), jnp.zeros(2))
    assert hypotheses.tokens[:, 0].tolist() == [[6, 6, 3, 0]] * 2
    np.testing.assert_allclose(hypotheses.log_probs[:, 0], 2 * np.log(0.45), rtol=1e-4)


def test_members_must_share_a_vocabulary():
    step = ensemble([constant_model([0.5, 0.5]), constant_model([0.2, 0.3, 0.5])])
    with pytest.raises(CapjaxError, match=r"\[2, 3\]"):
        step((jnp.zeros(1), jnp.zeros(1)), jnp.zeros(1, jnp.int32))
    with pytest.raises(CapjaxError, match="at least one model"):
        ensemble([])
