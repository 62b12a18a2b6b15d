"""The decoders against PyTorch, written from the papers (or PyTorch's own layers): values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.types import Features
from tests.models.test_decoders import L, V, captions, images, random_params, small

torch = pytest.importorskip("torch")

B = 3


def dense(params, x):
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def layer_norm(params, x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], eps=1e-6)


def lstm(gates, c):
    """TensorFlow 1's cell: gates i, j, f, o, forget bias 1."""
    i, j, f, o = gates.chunk(4, dim=1)
    c = c * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(j)
    return c, torch.sigmoid(o) * torch.tanh(c)


def maxout_lstm(gates, image, c):
    """Rennie et al. 2017, section 2.2: gates i, f, o, and a maxout of two that the image enters."""
    size = c.shape[1]
    i, f, o = (torch.sigmoid(gates[:, n * size : (n + 1) * size]) for n in range(3))
    maxout = gates[:, 3 * size :] + image
    c = i * torch.maximum(maxout[:, :size], maxout[:, size:]) + f * c
    return c, o * torch.tanh(c)


def attend(params, grid, hidden):
    """Bahdanau's attention, position by position: the weights."""
    scores = [
        torch.tanh(dense(params["key"], grid[:, i]) + dense(params["query"], hidden)) @ params["score"]
        for i in range(grid.shape[1])
    ]
    return torch.softmax(torch.cat(scores, dim=1), dim=1)


def mean_of(weights, grid):
    return sum(weights[:, i : i + 1] * grid[:, i] for i in range(grid.shape[1]))


def show_and_tell(p, pooled, grid, tokens):
    del grid
    c = h = torch.zeros(B, p["lstm"]["bias"].shape[0] // 4)
    words = p["embedding"]["embedding"]
    inputs = [dense(p["image_embedding"], layer_norm(p["feature_norm"], pooled))]
    inputs += [words[tokens[:, t]] for t in range(L)]
    logits = []
    for x in inputs:
        c, h = lstm(dense(p["lstm"], torch.cat([x, h], dim=1)), c)
        logits.append(dense(p["logits"], h))
    return torch.stack(logits[1:], dim=1), 0.0


def par_inject(p, pooled, grid, tokens):
    del grid
    image = torch.relu(dense(p["image_embedding"], layer_norm(p["feature_norm"], pooled)))
    c = h = torch.zeros_like(image)
    logits = []
    for t in range(L):
        gates = dense(p["word_gates"], p["embedding"]["embedding"][tokens[:, t]]) + dense(p["hidden_gates"], h)
        c, h = maxout_lstm(gates, dense(p["image_maxout"], image), c)
        logits.append(dense(p["logits"], h))
    return torch.stack(logits, dim=1), 0.0


def soft_attention(p, pooled, grid, tokens):
    del pooled
    grid = layer_norm(p["feature_norm"], grid)
    c, h = (torch.tanh(dense(p[name], grid.mean(dim=1))) for name in ("initial_cell", "initial_hidden"))
    logits, looked = [], 0.0
    for t in range(L):
        word = p["embedding"]["embedding"][tokens[:, t]]
        alpha = attend(p["attention"], grid, h)
        context = torch.sigmoid(dense(p["gate"], h)) * mean_of(alpha, grid)
        size = word.shape[1]
        kernel = p["lstm"]["kernel"]
        kernel = torch.cat([kernel[:size], p["context_gates"]["kernel"], kernel[size:]])  # over [word, context, hidden]
        c, h = lstm(torch.cat([word, context, h], dim=1) @ kernel + p["lstm"]["bias"], c)
        deep = torch.tanh(word + dense(p["output_hidden"], h) + dense(p["output_context"], context))
        logits.append(dense(p["logits"], deep))
        looked = looked + alpha * ((tokens[:, t] != 0) & (tokens[:, t] != 3))[:, None]
    return torch.stack(logits, dim=1), ((1 - looked) ** 2).sum()


def att2in(p, pooled, grid, tokens):
    del pooled
    grid = torch.relu(dense(p["grid_embedding"], layer_norm(p["feature_norm"], grid)))
    c = h = torch.zeros(B, grid.shape[2])
    logits = []
    for t in range(L):
        word = p["embedding"]["embedding"][tokens[:, t]]
        image = mean_of(attend(p["attention"], grid, h), grid)
        gates = dense(p["word_gates"], word) + dense(p["hidden_gates"], h)
        c, h = maxout_lstm(gates, dense(p["image_maxout"], image), c)
        logits.append(dense(p["logits"], h))
    return torch.stack(logits, dim=1), 0.0


def up_down(p, pooled, grid, tokens):
    del pooled
    grid = torch.relu(dense(p["grid_embedding"], layer_norm(p["feature_norm"], grid)))
    mean = grid.mean(dim=1)
    c1 = h1 = c2 = h2 = torch.zeros(B, grid.shape[2])
    logits = []
    for t in range(L):
        word = p["embedding"]["embedding"][tokens[:, t]]
        own = p["attention_lstm"]["kernel"]
        joined = torch.cat([p["language_gates"]["kernel"], p["mean_gates"]["kernel"], own])  # [h2, mean, word, h1]
        c1, h1 = lstm(torch.cat([h2, mean, word, h1], dim=1) @ joined + p["attention_lstm"]["bias"], c1)
        seen = mean_of(attend(p["attention"], grid, h1), grid)
        joined = torch.cat([p["attended_gates"]["kernel"], p["language_lstm"]["kernel"]])  # [seen, h1, h2]
        c2, h2 = lstm(torch.cat([seen, h1, h2], dim=1) @ joined + p["language_lstm"]["bias"], c2)
        logits.append(dense(p["logits"], h2))
    return torch.stack(logits, dim=1), 0.0


def transformer(p, pooled, grid, tokens):
    """Projections laid out for PyTorch's own `scaled_dot_product_attention`."""
    del pooled
    grid = dense(p["grid_embedding"], layer_norm(p["feature_norm"], grid))
    x = p["embedding"]["embedding"][tokens] + p["positions"][:L]
    functional = torch.nn.functional

    def heads(params, y):
        return torch.einsum("bld,dhc->bhlc", y, params["kernel"]) + params["bias"][:, None]

    def attention(params, y, memory, causal):
        query, key, value = (heads(params[n], z) for n, z in (("query", y), ("key", memory), ("value", memory)))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return torch.einsum("bhlc,hcd->bld", mixed, params["out"]["kernel"]) + params["out"]["bias"]

    for i in range(2):
        block = p[f"blocks_{i}"]
        y = layer_norm(block["norms_0"], x)
        x = x + attention(block["self_attention"], y, y, causal=True)
        x = x + attention(block["cross_attention"], layer_norm(block["norms_1"], x), grid, causal=False)
        wide = torch.relu(dense(block["widen"], layer_norm(block["norms_2"], x)))
        x = x + dense(block["narrow"], wide)
    return layer_norm(p["last_norm"], x) @ p["embedding"]["embedding"].T + p["logit_bias"], 0.0


PEERS = (show_and_tell, par_inject, soft_attention, att2in, up_down, transformer)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_values_and_gradients_equal_pytorch(peer):
    decoder = small(peer.__name__, normalize_features=True)
    params = random_params(decoder)["params"]
    features, tokens = images(B), captions(B)[:, :-1]
    weights = np.random.default_rng(2).normal(size=(B, L, V)).astype(np.float32)

    def objective(params, features):
        output = decoder.apply({"params": params}, features, tokens)
        total = jnp.sum(output.logits * weights) + sum(jnp.sum(x) for x in output.penalties.values())
        return total, output.logits

    (value, logits), gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, features)
    as_torch = lambda tree: jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), tree)  # noqa: E731
    theirs, seen = as_torch(params), as_torch(features)
    their_logits, penalty = peer(theirs, *seen, torch.tensor(np.asarray(tokens), dtype=torch.int64))
    their_value = (their_logits * torch.tensor(weights)).sum() + penalty
    their_value.backward()

    np.testing.assert_allclose(logits, their_logits.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(float(value), their_value.item(), rtol=1e-4)
    for (path, ours), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves((theirs, seen)), strict=True
    ):
        expected = torch.zeros_like(expected) if expected.grad is None else expected.grad
        np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("peer", PEERS[2:5], ids=lambda peer: peer.__name__)
def test_attention_maps_sum_to_one_and_are_those_of_the_search(peer):
    decoder = small(peer.__name__)
    params = random_params(decoder)
    features = images(B)
    maps = decoder.apply(params, features, captions(B)[:, :-1]).extras["attention"]
    assert maps.shape == (B, L, features.grid.shape[1])
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-5)
    swapped = Features(features.pooled, features.grid[:, ::-1])
    again = decoder.apply(params, swapped, captions(B)[:, :-1]).extras["attention"]
    np.testing.assert_allclose(again[:, :, ::-1], maps, rtol=1e-4, atol=1e-5)
