"""The decoder against an independent PyTorch implementation of the reference cell and system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.models import Captioner, InitInjectDecoder
from capjax.models.recurrence import LSTM
from capjax.types import Features

torch = pytest.importorskip("torch")

B, L, V, E, D, F = 3, 5, 11, 4, 6, 7


def torch_lstm_cell(x, c, h, kernel, bias, forget_bias=1.0):
    """TensorFlow 1's LSTMCell, from its documentation: one kernel over [x, h], gates i, j, f, o."""
    i, j, f, o = (torch.cat([x, h], dim=1) @ kernel + bias).chunk(4, dim=1)
    c = c * torch.sigmoid(f + forget_bias) + torch.sigmoid(i) * torch.tanh(j)
    return c, torch.sigmoid(o) * torch.tanh(c)


def torch_captioner(params, pooled, tokens):
    """The reference system's decoder, step by step."""
    elu = torch.nn.functional.elu

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    c = h = elu(dense("initial_state", elu(dense("image_bottleneck", pooled))))
    logits = []
    for t in range(tokens.shape[1]):
        c, h = torch_lstm_cell(params["embedding"]["embedding"][tokens[:, t]], c, h, **params["lstm"])
        logits.append(dense("logits", elu(dense("logit_bottleneck", h))))
    return torch.stack(logits, dim=1)


def random_like(tree, seed=0):
    """Replace every leaf by random numbers, biases included, which initialise to zero and would hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(1)
    decoder = InitInjectDecoder(V, embed_size=E, hidden_size=D, image_bottleneck_size=5, logit_bottleneck_size=8)
    features = Features(jnp.asarray(rng.normal(size=(B, F)), jnp.float32))
    tokens = jnp.asarray(rng.integers(0, V, (B, L)), jnp.int32)
    params = random_like(decoder.init(jax.random.key(0), features, tokens))
    return decoder, params, features, tokens


def as_torch(tree):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), tree)


def test_logits_and_gradients_equal_reference(example):
    decoder, params, features, tokens = example
    weights = np.random.default_rng(2).normal(size=(B, L, V)).astype(np.float32)

    def objective(params, pooled):
        return jnp.sum(decoder.apply(params, Features(pooled), tokens).logits * weights)

    value, (param_grads, feature_grads) = jax.value_and_grad(objective, argnums=(0, 1))(params, features.pooled)

    torch_params, pooled = as_torch(params["params"]), as_torch(features.pooled)
    logits = torch_captioner(torch_params, pooled, torch.tensor(np.asarray(tokens), dtype=torch.int64))
    (logits * torch.tensor(weights)).sum().backward()

    np.testing.assert_allclose(decoder.apply(params, features, tokens).logits, logits.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(value), float((logits.detach() * torch.tensor(weights)).sum()), rtol=1e-4)
    np.testing.assert_allclose(feature_grads, pooled.grad, rtol=1e-3, atol=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs.grad, rtol=1e-3, atol=1e-5),
        param_grads["params"],
        torch_params,
    )


def test_parameters_have_the_reference_shapes():
    decoder = InitInjectDecoder(8769)
    shapes = jax.eval_shape(
        decoder.init, jax.random.key(0), Features(jnp.zeros((1, 2048))), jnp.zeros((1, 19), jnp.int32)
    )["params"]
    assert shapes["image_bottleneck"]["kernel"].shape == (2048, 120)
    assert shapes["initial_state"]["kernel"].shape == (120, 300)
    assert shapes["embedding"]["embedding"].shape == (8769, 100)
    assert shapes["lstm"]["kernel"].shape == (400, 1200)
    assert shapes["logit_bottleneck"]["kernel"].shape == (300, 120)
    assert shapes["logits"]["kernel"].shape == (120, 8769)


def test_step_by_step_equals_scan(example):
    decoder, params, features, tokens = example
    context, carry = decoder.apply(params, features, method="start")
    stepped = []
    for t in range(L):
        carry, logits = decoder.apply(params, context, carry, tokens[:, t], method="decode_step")
        stepped.append(logits)
    np.testing.assert_allclose(
        jnp.stack(stepped, 1), decoder.apply(params, features, tokens).logits, rtol=1e-5, atol=1e-5
    )


def test_initial_cell_and_hidden_state_are_the_same_vector(example):
    decoder, params, features, _ = example
    _, (c, h) = decoder.apply(params, features, method="start")
    np.testing.assert_array_equal(c, h)


def test_lstm_forget_bias_is_added_in_the_cell():
    lstm = LSTM(E, D)
    x, c, h = (jnp.asarray(np.random.default_rng(i).normal(size=(B, n)), jnp.float32) for i, n in enumerate((E, D, D)))
    params = random_like(lstm.init(jax.random.key(0), (c, h), x, method="step"))
    (new_c, new_h), out = lstm.apply(params, (c, h), x, method="step")
    expected = torch_lstm_cell(*map(torch.tensor, map(np.asarray, (x, c, h))), **as_torch(params["params"]))
    np.testing.assert_allclose(new_c, expected[0].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_h, expected[1].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new_h, out)


def test_captions_that_share_an_image_see_its_features(example):
    decoder, params, features, tokens = example
    model = Captioner(decoder)
    variables = {"params": {"decoder": params["params"]}}
    shared = Features(features.pooled[:1])
    together = model.apply(variables, shared, tokens).logits
    repeated = model.apply(variables, Features(jnp.repeat(shared.pooled, B, axis=0)), tokens).logits
    np.testing.assert_allclose(together, repeated, rtol=1e-5, atol=1e-6)  # products of one row are rounded otherwise


def test_dropout_acts_in_training_only(example):
    _, params, features, tokens = example
    decoder = InitInjectDecoder(V, E, D, 5, 8, dropout_rate=0.5)
    keys = jax.random.split(jax.random.key(0), B)
    plain, dropped = (decoder.apply(params, features, tokens, keys=k).logits for k in (None, keys))
    assert not np.allclose(plain, dropped)
    # What is dropped of a caption goes with its key, wherever it stands in a batch.
    turned = Features(features.pooled[::-1])
    again = decoder.apply(params, turned, tokens[::-1], keys=keys[::-1]).logits
    np.testing.assert_allclose(again[::-1], dropped, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_close_and_returns_float32(example):
    decoder, params, features, tokens = example
    half = decoder.clone(dtype=jnp.bfloat16)
    logits = half.apply(params, features, tokens).logits
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, decoder.apply(params, features, tokens).logits, atol=0.1)
