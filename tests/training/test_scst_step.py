"""Self-critical training: the gradient of the expected reward, wherever it is computed, and what comes of it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from capjax.losses.self_critical import leave_one_out
from capjax.metrics.caption_health import repeats_itself
from capjax.models import Captioner, InitInjectDecoder
from capjax.sharding import replicate, shard_batch
from capjax.text.vocabulary import Vocabulary
from capjax.training.scst_step import RewardTables, SelfCriticalSettings, draw_captions, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training.update import row_keys
from capjax.training.xe_step import jit_train_step
from capjax.training_run.objectives.packed_references import pack_references
from capjax.types import SPECIAL_IDS, Features
from tests.models.test_decoders import small
from tests.tokenizing import tokenized
from tests.training.test_xe_step import mesh_of

REFERENCES = [
    ["a red circle", "one circle that is red", "red"],
    ["a blue square with a star"],
    ["the green star", "a star that is green"],
    ["a red square", "one square that is red"],
    ["two circles", "circles two of them"],
    ["a blue star", "the star is blue"],
    ["a heart"],
    ["the green heart is green", "one heart"],
]
N, K, L, F = len(REFERENCES), 3, 7, 6
VOCABULARY = Vocabulary.build((c for of_image in REFERENCES for c in of_image), "words", 1)
PACKED = pack_references(tokenized(REFERENCES), VOCABULARY)
DANGLING = ("a", "the", "with")
TABLES = RewardTables(  # as arrays of the device, which a program may close over
    jax.tree.map(jnp.asarray, PACKED.trie),
    jnp.asarray(PACKED.number_of_token),
    jnp.asarray([w in DANGLING for w in VOCABULARY.words]),
)
SETTINGS = SelfCriticalSettings(num_samples=K, max_length=L)
EVERYTHING = SelfCriticalSettings(K, "greedy", bleu_weight=2.0, xe_weight=0.5, temperature=0.6, max_length=L)


def make_batch(visual=None):
    tokens = np.zeros((N, L + 1), np.int32)
    for row, of_image in zip(tokens, REFERENCES, strict=True):
        ids = VOCABULARY.encode(of_image[0])
        row[: len(ids)] = ids
    features = Features(np.random.default_rng(0).normal(size=(N, F)).astype(np.float32))
    return {
        **({"features": features} if visual is None else {"image": visual}),
        "tokens": tokens,
        "mask": tokens[:, 1:] != 0,
        "image_id": np.arange(N),
        "valid": np.ones(N, bool),
        **PACKED.of_images(range(N)),
    }


@pytest.fixture(scope="module")
def model():
    return Captioner(InitInjectDecoder(len(VOCABULARY), 5, 7, 6, 6))


@pytest.fixture(scope="module")
def variables(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), Features(jnp.zeros((1, F))), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), shapes)


def one_update(model, variables, batch, num_devices=1, settings=SETTINGS, optimizer=None, at_step=0, **others):
    mesh, optimizer = mesh_of(num_devices), optimizer or optax.sgd(1.0)
    state = replicate(TrainState.create(variables, optimizer).replace(step=jnp.int32(at_step)), mesh)
    step = jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings, **others)
    return jax.device_get(step(state, shard_batch(batch, mesh), replicate(TABLES, mesh), jax.random.key(0)))


def drawn_captions(model, variables, settings):
    """What the first step of `one_update` draws."""
    batch = make_batch()
    keys = row_keys(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1), jnp.arange(N))
    inputs = (variables, batch["features"], batch["references"], batch["reference_norms"], keys)
    return jax.device_get(jax.jit(lambda *inputs: draw_captions(model, *inputs, TABLES, settings))(*inputs))


def say(tokens):
    words = [VOCABULARY.words[t] for t in tokens if t != SPECIAL_IDS.pad]
    return " ".join("endendend" if word == "<end>" else word for word in words)


def published_rewards(tokens, bleu_weight):
    """CIDEr-D and BLEU-4 of `pycocoevalcap`, END a word."""
    gts = {i: [say(VOCABULARY.encode(c)[1:]) for c in of_image] for i, of_image in enumerate(REFERENCES)}
    rewards = []
    for k in range(tokens.shape[1]):
        res = {i: [say(tokens[i, k])] for i in range(N)}
        bleu = np.asarray(Bleu(4).compute_score(gts, res, verbose=0)[1][3])
        rewards.append(Cider().compute_score(gts, res)[1] + bleu_weight * bleu)
    return np.transpose(rewards)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_what_is_no_word_is_neither_drawn_nor_learnt(model, variables, baseline):
    """Such as the entries that fill a vocabulary up."""
    drawn = {int(t) for t in np.unique(drawn_captions(model, variables, SETTINGS).tokens)}
    no_words = tuple(sorted(drawn - set(vars(SPECIAL_IDS).values())))[:3]
    settings = dataclasses.replace(SETTINGS, baseline=baseline, unused_ids=no_words)
    assert not set(no_words) & {int(t) for t in np.unique(drawn_captions(model, variables, settings).tokens)}
    state, _ = one_update(model, variables, make_batch(), settings=settings)
    change = np.asarray(state.params["decoder"]["logits"]["bias"] - variables["params"]["decoder"]["logits"]["bias"])
    assert not change[list(no_words)].any() and np.count_nonzero(change) > 5


@pytest.mark.parametrize("settings", [SETTINGS, EVERYTHING], ids=["plain", "everything"])
def test_gradient_is_that_of_the_papers(model, variables, settings):
    """Σ (r - b) ∇ log p, with the published scorer's rewards, and log p from decoding word by word."""
    drawn = drawn_captions(model, variables, settings)
    rewards = published_rewards(drawn.tokens, settings.bleu_weight)
    np.testing.assert_allclose(drawn.reward, rewards, rtol=1e-5, atol=1e-6)
    if settings.baseline == "mean":
        baselines = [[np.mean(np.delete(row, k)) for k in range(K)] for row in rewards]
    else:
        context, carry = model.apply(variables, make_batch()["features"], method="start")
        greedy, word, ended = [], jnp.full(N, SPECIAL_IDS.start), np.zeros(N, bool)
        for _ in range(L):
            carry, logits = model.apply(variables, context, carry, word, method="decode_step")
            word = jnp.argmax(logits.at[:, :3].set(-jnp.inf), axis=-1)
            greedy.append(np.where(ended, SPECIAL_IDS.pad, word))
            ended |= np.asarray(word) == SPECIAL_IDS.end
        baselines = np.repeat(published_rewards(np.transpose(greedy)[:, None], settings.bleu_weight), K, axis=1)
    np.testing.assert_allclose(drawn.baseline, baselines, rtol=1e-5, atol=1e-6)

    batch = make_batch()

    def loss(variables):
        total = 0.0
        context, first = model.apply(variables, batch["features"], method="start")
        for k in range(K):
            carry, word = first, jnp.full(N, SPECIAL_IDS.start)
            for t in range(L):
                carry, logits = model.apply(variables, context, carry, word, method="decode_step")
                log_probs = jax.nn.log_softmax(logits.at[:, :3].set(-jnp.inf) / settings.temperature)
                word = jnp.asarray(drawn.tokens[:, k, t])
                said = word != SPECIAL_IDS.pad
                advantage = jnp.asarray(rewards[:, k] - np.asarray(baselines)[:, k], jnp.float32)
                log_prob = jnp.where(said, log_probs[jnp.arange(N), jnp.where(said, word, SPECIAL_IDS.end)], 0.0)
                total -= jnp.sum(advantage * log_prob) / (N * K)
        logits = model.apply(variables, batch["features"], jnp.asarray(batch["tokens"][:, :-1])).logits
        of_words = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][:, 1:, None], axis=-1)[..., 0]
        return total - settings.xe_weight * jnp.sum(jnp.where(batch["mask"], of_words, 0.0)) / N

    value, gradient = jax.value_and_grad(loss)(variables)
    state, metrics = one_update(model, variables, batch, settings=settings)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda old, new, g: np.testing.assert_allclose(old - new, g, rtol=1e-3, atol=2e-5),
        variables["params"],
        state.params,
        gradient["params"],
    )


def test_captions_are_drawn_at_the_temperature(model, variables):
    """Near zero, all of them are the one that greedy search finds, whose reward the other baseline is."""
    cold = drawn_captions(model, variables, SelfCriticalSettings(K, "greedy", temperature=1e-3, max_length=L))
    np.testing.assert_array_equal(cold.tokens, np.repeat(cold.tokens[:, :1], K, axis=1))
    np.testing.assert_array_equal(cold.reward, cold.baseline)
    assert np.any(drawn_captions(model, variables, SETTINGS).tokens != cold.tokens)


def test_diagnostics_are_those_of_the_captions_drawn(model, variables):
    drawn = drawn_captions(model, variables, SETTINGS)
    _, metrics = one_update(model, variables, make_batch())
    captions = [VOCABULARY.decode(row).split() for row in drawn.tokens.reshape(-1, L)]
    tokens = [say(row).split() for row in drawn.tokens.reshape(-1, L)]
    np.testing.assert_allclose(metrics["length"], np.mean([len(t) for t in tokens]), rtol=1e-5)
    np.testing.assert_allclose(metrics["dangling_end"], np.mean([bool(c) and c[-1] in DANGLING for c in captions]))
    np.testing.assert_allclose(metrics["repetition"], np.mean([repeats_itself(t) for t in tokens]))
    np.testing.assert_allclose(metrics["reward"], drawn.reward.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["baseline"], drawn.baseline.mean(), rtol=1e-5)
    spread = np.sqrt(np.mean((drawn.reward - drawn.baseline) ** 2))
    np.testing.assert_allclose(metrics["advantage_std"], spread, rtol=1e-5)
    assert 0 < metrics["dangling_end"] < 1 and 0 < metrics["repetition"] < 1
    _, of_another_step = one_update(model, variables, make_batch(), at_step=1)
    assert of_another_step["reward"] != metrics["reward"]


class PenalisedDecoder(InitInjectDecoder):
    """With a penalty that is cheap to compute."""

    def __call__(self, features, tokens, keys=None):
        output = super().__call__(features, tokens, keys)
        return output._replace(penalties={"squares": jnp.sum(output.hidden**2, axis=(1, 2))})


WITH_EVERYTHING = Captioner(PenalisedDecoder(len(VOCABULARY), 5, 7, 6, 6, dropout_rate=0.5))


def test_loss_has_dropout_in_both_its_parts_and_the_penalties_of_the_references(model, variables):
    """Captions are drawn without dropout, and learnt from with it."""
    drawn, batch = drawn_captions(model, variables, EVERYTHING), make_batch()

    def run(purpose, fed, words, temperature=1.0, unsayable=slice(0)):
        keys = row_keys(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), purpose), jnp.arange(len(fed)))
        output = jax.jit(WITH_EVERYTHING.apply)(variables, batch["features"], jnp.asarray(fed), keys)
        log_probs = np.asarray(jax.nn.log_softmax(output.logits.at[..., unsayable].set(-jnp.inf) / temperature))
        of_words = np.take_along_axis(log_probs, words[..., None], axis=-1)[..., 0]
        return np.where(words == SPECIAL_IDS.pad, 0.0, of_words).sum(axis=1), output.penalties["squares"]

    captions = drawn.tokens.reshape(-1, L)
    fed = np.insert(captions[:, :-1], 0, SPECIAL_IDS.start, axis=1)
    of_captions, _ = run(2, fed, captions, EVERYTHING.temperature, slice(3))
    of_references, penalty = run(3, batch["tokens"][:, :-1], batch["tokens"][:, 1:])
    expected = -np.mean((drawn.reward - drawn.baseline).reshape(-1) * of_captions)
    expected += EVERYTHING.xe_weight * (np.mean(penalty) - np.mean(of_references))
    _, metrics = one_update(WITH_EVERYTHING, variables, batch, settings=EVERYTHING)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(("num_devices", "accumulate_steps"), [(8, 1), (2, 4)])
def test_devices_and_microbatches_do_not_matter(variables, num_devices, accumulate_steps):
    whole, metrics = one_update(WITH_EVERYTHING, variables, make_batch(), settings=EVERYTHING)
    parted, parted_metrics = one_update(
        WITH_EVERYTHING, variables, make_batch(), num_devices, EVERYTHING, accumulate_steps=accumulate_steps
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(parted_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole.params, parted.params)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_it_learns_to_say_what_is_rewarded(model, variables, baseline):
    settings = SelfCriticalSettings(5, baseline, max_length=L)
    mesh, optimizer, batch = mesh_of(1), optax.adam(0.02), make_batch()
    state = replicate(TrainState.create(variables, optimizer), mesh)
    step = jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings)
    batch, tables = shard_batch(batch, mesh), replicate(TABLES, mesh)
    rewards = []
    for _ in range(400):
        state, metrics = step(state, batch, tables, jax.random.key(0))
        rewards.append(float(metrics["reward"]))
    assert np.mean(rewards[-20:]) > 5 * np.mean(rewards[:20])


def test_leave_one_out_by_hand():
    found = leave_one_out(jnp.asarray([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(found, [[4.0, 3.5, 1.5]])


class TinyEncoder(nn.Module):
    """What `Captioner` asks of an encoder, in a convolution and its BatchNorm: Inception V3 compiles for minutes."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(5, (8, 8), (8, 8), use_bias=False)(images.astype(jnp.float32) / 255)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        grid = x.reshape(x.shape[0], -1, x.shape[-1])
        return Features(grid.mean(axis=1), grid)


def test_gradients_reach_the_encoder():
    """By cross-entropy and by reinforcement, on one device and on eight."""
    decoder = small("soft_attention", vocab_size=len(VOCABULARY))
    model = Captioner(decoder, TinyEncoder(), freeze_encoder=False, train_batch_norm=True)
    images = np.random.default_rng(0).integers(0, 255, (N, 16, 16, 3)).astype(np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1], jnp.zeros((1, 1), jnp.int32))
    batch, optimizer = make_batch(images), optax.sgd(0.01)
    results = [one_update(model, variables, batch, n, optimizer=optimizer) for n in (1, 8)]
    mesh = mesh_of(1)
    state = replicate(TrainState.create(variables, optimizer), mesh)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    results.append(jax.device_get(step(state, shard_batch(batch, mesh), jax.random.key(0))))
    for state, metrics in results:
        assert np.isfinite(metrics["gradient_norm"]) and metrics["gradient_norm"] > 0
        for part in ("params", "batch_stats"):
            before, after = variables[part]["encoder"], getattr(state, part)["encoder"]
            moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), dict(after), dict(before))
            assert all(jax.tree.leaves(moved)), f"{part} of the encoder are trained"
    one, eight = (state.params for state, _ in results[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, eight)
