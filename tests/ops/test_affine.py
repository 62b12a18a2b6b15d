"""Product and bias in both forms against NumPy in double precision: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.ops.affine import affine


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("num_rows", [3, 16, 40])
def test_values_and_gradients(num_rows, dtype, tolerance):
    rng = np.random.default_rng(num_rows)
    x, kernel, bias, cotangent = (rng.normal(size=s) for s in ((num_rows, 12), (12, 30), (30,), (num_rows, 30)))
    values, gradients = jax.vjp(affine, jnp.asarray(x, dtype), jnp.float32(kernel), jnp.float32(bias))
    assert values.dtype == jnp.float32
    found = [values, *gradients(jnp.float32(cotangent))]
    expected = [x @ kernel + bias, cotangent @ kernel.T, x.T @ cotangent, cotangent.sum(axis=0)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=tolerance * np.abs(other).max())


def test_batches_of_any_size_can_be_exported():
    rows = jax.export.symbolic_shape("rows, 12")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (rows, (12, 30), (30,))]
    exported = jax.export.export(jax.jit(affine), platforms=("cpu", "cuda", "tpu"))(*shapes)
    inputs = [jnp.float32(np.random.default_rng(0).normal(size=s)) for s in ((40, 12), (12, 30), (30,))]
    np.testing.assert_allclose(exported.call(*inputs), affine(*inputs), rtol=0, atol=1e-5)
