"""What every decoder must do, whatever its equations."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.decoding.ensemble import ensemble
from capjax.decoding.settings import DecoderSettings, build_search
from capjax.models import DECODERS, Captioner, begin_search, build_decoder, decoder_settings
from capjax.models.dropout import dropout
from capjax.types import SPECIAL_IDS, Features
from tests.compiling import AS_FOR_USERS
from tests.plain_loss import weighted_cross_entropy

V, F, P, L = 13, 11, 7, 6
SIZES = {name: 8 for name in ("embed_size", "hidden_size", "attention_size")}
SIZES |= {"image_bottleneck_size": 6, "logit_bottleneck_size": 6, "num_layers": 2, "num_heads": 2, "max_length": 9}


def small(name, **changes):
    sizes = {field: size for field, size in SIZES.items() if field in decoder_settings(name)}
    return build_decoder(name, **sizes | {"vocab_size": V} | changes)


def images(num, seed=0):
    rng = np.random.default_rng(seed)
    grid = jnp.asarray(rng.normal(size=(num, P, F)), jnp.float32)
    return Features(grid.mean(axis=1), grid)


def captions(num, length=L, seed=1):
    """Captions that begin with START, of different lengths, END and PAD behind."""
    rng = np.random.default_rng(seed)
    tokens = np.full((num, length + 1), SPECIAL_IDS.pad, np.int32)
    for i, row in enumerate(tokens):
        words = 1 + i % (length - 1)
        row[: words + 2] = [SPECIAL_IDS.start, *rng.integers(4, V, words), SPECIAL_IDS.end]
    return jnp.asarray(tokens)


def random_params(decoder, seed=0):
    """Parameters that are all random: biases at zero would hide mistakes."""
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), images(1), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module", params=sorted(DECODERS))
def model(request):
    decoder = small(request.param)
    return decoder, random_params(decoder)


def test_step_by_step_equals_teacher_forcing_with_images_shared(model):
    decoder, params = model
    features, tokens = images(2), captions(6)
    logits = decoder.apply(params, features, tokens[:, :-1]).logits
    assert logits.shape == (6, L, V) and logits.dtype == jnp.float32
    # Each caption with an image of its own says the same as three captions that share one.
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), features)
    np.testing.assert_allclose(decoder.apply(params, repeated, tokens[:, :-1]).logits, logits, rtol=1e-4, atol=1e-5)
    context, carry = decoder.apply(params, features, method="start")
    carry = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), carry)
    decode_step = jax.jit(partial(decoder.apply, method="decode_step"))
    for t in range(L):
        carry, step = decode_step(params, context, carry, tokens[:, t])
        np.testing.assert_allclose(step, logits[:, t], rtol=1e-4, atol=1e-5)


def test_a_search_remembers_no_more_words_than_it_is_for():
    decoder = small("transformer")
    params, features, tokens = random_params(decoder), images(2), captions(2)
    model, variables = Captioner(decoder), {"params": {"decoder": params["params"]}}
    (step, carry), (whole_step, whole) = (begin_search(model, variables, features, n) for n in (L, decoder.max_length))
    assert {leaf.shape[1] for leaf in jax.tree.leaves(carry.layers)} == {L}
    assert {leaf.shape[1] for leaf in jax.tree.leaves(whole.layers)} == {decoder.max_length}
    for t in range(L):
        (carry, logits), (whole, expected) = step(carry, tokens[:, t]), whole_step(whole, tokens[:, t])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_no_word_sees_later_ones_and_every_word_sees_the_image_and_earlier_ones(model):
    decoder, params = model
    features, tokens = images(2), captions(2)[:, :-1]
    changed = tokens.at[:, 3].set((tokens[:, 3] + 1) % V)
    before, after = (decoder.apply(params, features, t).logits for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:] - after[:, 3:]).max(axis=(0, 2)).min() > 0
    other = decoder.apply(params, images(2, seed=5), tokens).logits
    assert np.abs(before - other).max(axis=(0, 2)).min() > 0


def loss(decoder, params, features, tokens):
    output = decoder.apply(params, features, tokens[:, :-1])
    weights = (tokens[:, 1:] != SPECIAL_IDS.pad).astype(jnp.float32)
    total, _ = weighted_cross_entropy(output.logits, tokens[:, 1:], weights)
    return total + sum(jnp.sum(penalty) for penalty in output.penalties.values())


def test_padding_adds_nothing_to_loss_and_gradients(model):
    decoder, params = model
    features, tokens = images(3), captions(3)
    longer = jnp.pad(tokens, ((0, 0), (0, 2)), constant_values=SPECIAL_IDS.pad)
    value_and_grad = jax.jit(jax.value_and_grad(partial(loss, decoder)))
    (a, da), (b, db) = (value_and_grad(params, features, t) for t in (tokens, longer))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), da, db)
    unused = [name for name, x in jax.tree_util.tree_leaves_with_path(da) if not np.any(x)]
    assert not unused, "every parameter is trained"


def test_gradients_reach_every_image(model):
    """So that an encoder in front of any decoder can be trained."""
    decoder, params = model
    features, tokens = images(3), captions(6)
    gradient = jax.jit(jax.grad(lambda features: loss(decoder, params, features, tokens)))(features)
    reached = sum(np.abs(x).reshape(3, -1).max(axis=1) for x in jax.tree.leaves(gradient))
    assert (reached > 0).all()


def test_dropout_goes_with_the_captions_key(model):
    decoder, params = model
    decoder = decoder.clone(dropout_rate=0.5)
    features, tokens = images(3), captions(3)[:, :-1]
    keys = jax.random.split(jax.random.key(0), 3)
    plain, dropped = (decoder.apply(params, features, tokens, keys=k).logits for k in (None, keys))
    assert np.abs(plain - dropped).max() > 1e-3
    turned = jax.tree.map(lambda x: x[::-1], features)
    again = decoder.apply(params, turned, tokens[::-1], keys=keys[::-1]).logits[::-1]
    np.testing.assert_allclose(again, dropped, rtol=1e-4, atol=1e-5)


def test_dropout_scales_up_what_stays_and_every_place_and_caption_drops_its_own():
    x, keys = jnp.ones((3, 10_000)), jax.random.split(jax.random.key(0), 3)
    first, second = (np.asarray(dropout(x, 0.2, keys, site=site)) for site in (0, 1))
    dropped = np.concatenate([first, second]) == 0
    np.testing.assert_allclose(dropped.mean(axis=1), 0.2, atol=0.02)
    np.testing.assert_allclose(np.concatenate([first, second])[~dropped], 1.25)
    # Of two that are independent, each drops a fifth of what the other keeps.
    for a, b in itertools.combinations(dropped, 2):
        assert b[~a].mean() == pytest.approx(0.2, abs=0.02)


def test_no_two_places_of_a_decoder_drop_the_same_units(model, monkeypatch):
    decoder, params = model
    fold_in, sites = jax.random.fold_in, []

    def note_site(key, site):
        sites.append(site)
        return fold_in(key, site)

    monkeypatch.setattr(jax.random, "fold_in", note_site)
    keys = jax.random.split(jax.random.key(0), 3)
    decoder.clone(dropout_rate=0.5).apply(params, images(3), captions(3)[:, :-1], keys=keys)
    assert len(set(sites)) == len(sites) >= 2


@pytest.mark.parametrize("name", ["par_inject", "att2in", "up_down"])
def test_dropout_acts_on_the_image(name):
    """Without words, and but for units of the output that are dropped, only a dropped image makes a difference."""
    decoder = small(name, dropout_rate=0.5)
    params = random_params(decoder)
    params["params"]["embedding"]["embedding"] *= 0.0
    features, tokens = images(2), captions(6)[:, :-1]
    plain = decoder.apply(params, features, tokens).hidden
    keys = jax.random.split(jax.random.key(0), 6)
    dropped = decoder.apply(params, features, tokens, keys=keys).hidden
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    assert np.abs(dropped / 2 - plain)[kept].max() > 1e-3
    # What is dropped of an image that captions share follows from the first one's key.
    others = jnp.where(jnp.arange(6) % 3 == 0, keys, jax.random.split(jax.random.key(1), 6))
    again = decoder.apply(params, features, tokens, keys=others).hidden
    np.testing.assert_array_equal(again[::3], dropped[::3])


def test_bfloat16_stays_close(model):
    decoder, params = model
    features, tokens = images(2), captions(2)[:, :-1]
    half = decoder.clone(dtype=jnp.bfloat16).apply(params, features, tokens).logits
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, decoder.apply(params, features, tokens).logits, atol=0.25)


def caption_all(decoder, params, features, settings):
    search = build_search(settings, SPECIAL_IDS)
    context, carry = decoder.apply(params, features, method="start")
    keys = jax.random.split(jax.random.key(3), features.pooled.shape[0])
    return search(partial(decoder.apply, params, context, method="decode_step"), carry, keys)


def test_overfits_and_every_search_says_what_was_learnt(model):
    decoder, _ = model
    decoder = decoder.clone(dropout_rate=0.0)
    features, tokens = images(16), captions(16)
    params = decoder.init(jax.random.key(0), features, tokens[:, :-1])
    optimizer = optax.adam(0.02)

    @jax.jit
    def train(params):
        def step(state, _):
            params, opt_state = state
            value, gradient = jax.value_and_grad(partial(loss, decoder))(params, features, tokens)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=400)

    (params, _), _ = train(params)
    for changes in (
        {"method": "greedy"},
        {"method": "beam", "beam_size": 1},
        {"method": "beam", "beam_size": 3},
        {"method": "diverse_beam", "beam_size": 4, "num_groups": 2, "diversity_strength": 0.1},
        {"method": "sample", "temperature": 0.1},
    ):
        found = jax.jit(partial(caption_all, decoder, settings=DecoderSettings(max_length=L, **changes)))(
            params, features
        )
        right = (found.tokens[:, 0] == tokens[:, 1:]).all(axis=1)
        assert right.mean() > 0.9, changes


def test_a_beam_search_holds_no_grid_per_beam(model):
    """Sizes are prime: an array with the grid's positions and features for each of the beams would show."""
    decoder, params = model
    settings = DecoderSettings(method="beam", beam_size=5, max_length=L)
    compiled = jax.jit(partial(caption_all, decoder, settings=settings)).lower(params, images(3)).compile(AS_FOR_USERS)
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())}
    assert (3, P, F) in shapes or decoder_settings_lack_grid(decoder)
    for shape in shapes:
        size = np.prod(shape)
        assert size % (5 * P * F) or size < 5 * P * F, f"{shape} holds the grid for every beam"


def decoder_settings_lack_grid(decoder):
    return not hasattr(decoder, "attention_size") and not hasattr(decoder, "num_heads")


def test_unlike_decoders_make_an_ensemble():
    features = images(4)
    parts = [small(name) for name in sorted(DECODERS)]
    params = [random_params(part, seed) for seed, part in enumerate(parts)]
    starts = [part.apply(p, features, method="start") for part, p in zip(parts, params, strict=True)]
    steps = [
        partial(part.apply, p, context, method="decode_step")
        for part, p, (context, _) in zip(parts, params, starts, strict=True)
    ]
    search = build_search(DecoderSettings(method="beam", beam_size=3, max_length=L), SPECIAL_IDS)
    found = jax.jit(lambda: search(ensemble(steps), tuple(carry for _, carry in starts), None))()
    assert np.isfinite(found.log_probs).all()
    # The log-probability is that of the mean of the models' distributions, word by word.
    tokens = np.asarray(found.tokens[:, 0])
    inputs = jnp.asarray(np.concatenate([np.full((4, 1), SPECIAL_IDS.start), tokens[:, :-1]], axis=1), jnp.int32)
    mean = np.mean(
        [jax.nn.softmax(part.apply(p, features, inputs).logits) for part, p in zip(parts, params, strict=True)], axis=0
    )
    expected = [sum(np.log(mean[i, t, tokens[i, t]]) for t in range(L) if t < found.lengths[i, 0]) for i in range(4)]
    np.testing.assert_allclose(found.log_probs[:, 0], expected, rtol=1e-4)
