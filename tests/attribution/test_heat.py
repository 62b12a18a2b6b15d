"""Where models look: each method against its definition, written out in plain NumPy over single passes of the model."""

import functools
import itertools
import pathlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from PIL import Image, ImageDraw

from capjax.attribution import METHODS, integrated_gradients
from capjax.attribution.explainer import Explainer
from capjax.captioning.loaded_model import load_model
from capjax.errors import CapjaxError
from capjax.images import Preprocessing, preprocess
from capjax.models import DECODERS
from capjax.models.inception_v3 import scale_images
from capjax.types import Features
from tests.random_models import model_of_features, small_model
from tests.toy_project import COLOURS

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "model_0_1" / "model"
CAPTION = "w3 w10 w7"
ATTEND = {"att2in", "soft_attention", "transformer", "up_down"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(small_model(tmp_path_factory.mktemp("model"), "init_inject")))


@pytest.fixture(scope="module")
def image():
    """Noise in two colours, of which a network sees something everywhere."""
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 255, (5, 5, 3)).repeat(15, 0).repeat(15, 1)
    return (0.7 * tiles + 0.3 * rng.integers(0, 255, tiles.shape)).astype(np.uint8)


@functools.cache
def programs(captioner):
    return tuple(jax.jit(functools.partial(captioner.apply, method=method)) for method in ("start", "decode_step"))


def log_probs(model, image, caption=CAPTION):
    """Return log p of every word and the end, by steps of decoding, in float64 after the logits."""
    start, step = programs(model.captioner)
    context, carry = start(model.variables, jnp.asarray(image[None]))
    found = []
    ids = model.vocabulary.encode(caption)
    for token, following in itertools.pairwise(ids):
        carry, logits = step(model.variables, context, carry, jnp.asarray([token]))
        found.append(scipy.special.log_softmax(np.asarray(logits[0], np.float64))[following])
    return np.asarray(found)


def test_occlusion_is_what_covering_costs(model, image):
    heat = Explainer(model, "occlusion")(image, CAPTION).heat
    assert heat.shape == (4, 8, 8)
    mean = np.round(image.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
    cell_of = np.arange(75) * 8 // 75
    whole = log_probs(model, image)
    for row, column in [(0, 0), (3, 5), (7, 2)]:
        costs = []
        for down in (row - 1, row):  # the four windows of 2 × 2 cells that cover the cell
            for right in (column - 1, column):
                covered = image.copy()
                inside = np.isin(cell_of, (down, down + 1))[:, None] & np.isin(cell_of, (right, right + 1))[None, :]
                covered[inside] = mean
                costs.append(whole - log_probs(model, covered))
        np.testing.assert_allclose(heat[:, row, column], np.mean(costs, axis=0), atol=2e-4)
    assert np.abs(heat).max() > 0.01


@pytest.mark.usefixtures("compiled_as_for_users")
def test_integrated_gradients_add_up(model, image, monkeypatch):
    """The heat of all places is the log-probability that the picture adds: the axiom of completeness."""
    # The way through these random weights is winding: 1.5 nats down and up again.
    monkeypatch.setattr(integrated_gradients, "NUM_STEPS", 256)
    heat = Explainer(model, "integrated_gradients")(image, CAPTION).heat
    scaled = np.asarray(scale_images(jnp.asarray(image[None]), model.encoder.config.input_scaling))[0]
    baseline = np.broadcast_to(scaled.mean(axis=(0, 1)), scaled.shape)
    gained = log_probs(model, scaled) - log_probs(model, baseline.astype(np.float32))
    assert np.abs(gained).max() > 0.02
    np.testing.assert_allclose(heat.sum(axis=(1, 2)), gained, atol=0.06 * np.abs(gained).max())


def test_integrated_gradients_of_a_cell_are_its_slope_along_the_way(model, image):
    heat = Explainer(model, "integrated_gradients")(image, CAPTION).heat
    scaled = np.asarray(scale_images(jnp.asarray(image[None]), model.encoder.config.input_scaling))[0]
    baseline = np.broadcast_to(scaled.mean(axis=(0, 1)), scaled.shape)
    cell_of = np.arange(75) * 8 // 75
    for row, column in [(2, 4), (6, 1)]:
        inside = ((cell_of == row)[:, None] & (cell_of == column)[None, :])[..., None]
        step = (0.002 * inside * (scaled - baseline)).astype(np.float32)
        slopes = []
        for k in range(integrated_gradients.NUM_STEPS):
            here = (baseline + (k + 0.5) / integrated_gradients.NUM_STEPS * (scaled - baseline)).astype(np.float32)
            slopes.append((log_probs(model, here + step) - log_probs(model, here - step)) / 0.004)
        np.testing.assert_allclose(heat[:, row, column], np.mean(slopes, axis=0), atol=0.02 * np.abs(heat).max())


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_decoder_is_explained_by_what_it_has(tmp_path, image, name):
    model = load_model(str(small_model(tmp_path, name)))
    explanation = Explainer(model)(image, CAPTION)
    assert explanation.method == ("attention" if name in ATTEND else "occlusion")
    assert [word.text for word in explanation.words] == ["w3", "w10", "w7", "(end)"]
    expected = log_probs(model, image)
    np.testing.assert_allclose(np.log([word.probability for word in explanation.words]), expected, atol=1e-4)
    for word in explanation.words:
        shares = [probability for _, probability in word.likely]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
        assert word.probability <= shares[0] + 1e-6
        mine = [probability for text, probability in word.likely if text == word.text]
        assert mine in ([], [pytest.approx(word.probability)])
    if name in ATTEND:
        ids = jnp.asarray([model.vocabulary.encode(CAPTION)[:-1]])
        (attention,) = jax.jit(model.captioner.apply)(model.variables, image[None], ids).extras["attention"]
        for row, column in np.ndindex(7, 7):  # places are counted row by row
            of_place = attention[:, 7 * row + column]
            np.testing.assert_allclose(explanation.heat[:, row, column], of_place, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(explanation.heat.sum(axis=(1, 2)), 1, rtol=1e-5)
        longer = Explainer(model)(image, f"{CAPTION} w3")
        np.testing.assert_allclose(longer.heat[:3], explanation.heat[:3], rtol=1e-4, atol=1e-6)
    else:
        with pytest.raises(CapjaxError, match="looks at images once, whole; occlusion"):
            Explainer(model, "attention")(image, CAPTION)


def test_the_brightest_place_is_one_and_what_spoke_against_a_word_is_dark(model, image):
    explanation = Explainer(model, "occlusion")(image, CAPTION)
    for heat, light in zip(explanation.heat, explanation.brightness, strict=True):
        assert (light[heat <= 0] == 0).all() and light.max() == pytest.approx(1 if heat.max() > 0 else 0)
        assert light.argmax() == heat.argmax() or heat.max() <= 0


def test_a_grid_that_is_no_square_is_refused(tmp_path):
    model = load_model(str(small_model(tmp_path, "att2in")))
    size = model.variables["params"]["decoder"]["grid_embedding"]["kernel"].shape[0]
    rng = np.random.default_rng(0)
    features = [Features(rng.normal(size=size), rng.normal(size=(p, size))) for p in (9, 6)]
    features = jax.tree.map(lambda x: x.astype(np.float32), features)
    assert Explainer(model)(features[0], CAPTION).heat.shape == (4, 3, 3)
    with pytest.raises(CapjaxError, match="expected a square grid to draw attention on, the features have 6 places"):
        Explainer(model)(features[1], CAPTION)


def test_features_without_attention_have_no_heat(tmp_path):
    model = load_model(str(model_of_features(tmp_path / "model")))
    features = Features(np.zeros(7, np.float32), None)
    explanation = Explainer(model)(features, "dog dog")
    assert explanation.heat is None and explanation.brightness is None and explanation.method == ""
    assert [word.probability for word in explanation.words] == [pytest.approx(0.2)] * 3  # of 5 words, all weights 0
    for method in ("occlusion", "integrated_gradients"):
        with pytest.raises(CapjaxError, match="expected a model with an encoder"):
            Explainer(model, method)(features, "dog")
    with pytest.raises(CapjaxError, match=r"expected a method out of attention, .*, got 'guess'"):
        Explainer(model, "guess")
    assert set(METHODS) == {"attention", "occlusion", "integrated_gradients"}


def toys(*placed):
    """Draw toys (colour, shape, x, y) of 34 pixels on white, 80 × 80."""
    image = Image.new("RGB", (80, 80), "white")
    for colour, shape, x, y in placed:
        getattr(ImageDraw.Draw(image), shape)((x, y, x + 34, y + 34), fill=COLOURS[colour])
    return preprocess(np.asarray(image), Preprocessing(image_size=75))


def randomised(model):
    rng = np.random.default_rng(0)
    params = dict(model.variables["params"])
    params["decoder"] = jax.tree.map(
        lambda weight: rng.normal(weight.mean(), weight.std(), weight.shape).astype(weight.dtype), params["decoder"]
    )
    return replace(model, variables={**model.variables, "params": params})


NOUNS = {"ellipse": "circle", "rectangle": "box"}
CORNERS = [(4, 4), (4, 40), (40, 4), (40, 40)]


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
@pytest.mark.usefixtures("compiled_as_for_users")
def test_the_hottest_place_is_the_thing_that_the_word_names(method):
    explain, hits = Explainer(load_model(str(GOLDEN)), method), []
    for colour, (shape, noun), (x, y) in itertools.product(COLOURS, NOUNS.items(), CORNERS[:3]):
        heat = explain(toys((colour, shape, x, y)), f"there is a {colour} {noun}").heat[3:5]
        for row, column in (np.unravel_index(of_word.argmax(), of_word.shape) for of_word in heat):
            hits.append(x - 5 <= 10 * column + 5 <= x + 39 and y - 5 <= 10 * row + 5 <= y + 39)
    assert np.mean(hits) > 0.85  # a quarter of the picture would be hit by chance


def test_of_two_things_the_word_is_hot_on_the_one_that_it_names():
    """Not so with a decoder of random weights (Adebayo et al. 2018): then it is the picture that was seen, no word."""

    def told_apart(model):
        explain, found = Explainer(model, "occlusion"), []
        for first, second in itertools.permutations(COLOURS, 2):
            for (x, y), shape in zip(CORNERS[1:3], ["ellipse", "rectangle"], strict=True):
                image = toys((first, shape, x, y), (second, shape, 44 - x, 44 - y))
                heat = explain(image, f"there is a {first} {NOUNS[shape]}").heat[3]
                halves = [heat[4 * (y > 8) :][:4, 4 * (x > 8) :][:, :4], heat[4 * (y < 8) :][:4, 4 * (x < 8) :][:, :4]]
                found.append(halves[0].mean() > halves[1].mean())
        return np.mean(found)

    model = load_model(str(GOLDEN))
    assert told_apart(model) > 0.85
    assert 0.3 < told_apart(randomised(model)) < 0.7
