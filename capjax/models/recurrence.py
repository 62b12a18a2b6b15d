"""The LSTM of the reference system, and how any decoder is scanned over the words of captions."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from capjax.types import Carry, Context

LSTMCarry = tuple[Float[Array, "B D"], Float[Array, "B D"]]
"""(c, h), the cell and the hidden state, in the order Flax uses."""


def zero_carry(num_rows: int, hidden_size: int, dtype: DTypeLike) -> LSTMCarry:
    """Return the state (c, h) of an LSTM that has seen nothing."""
    zeros = jnp.zeros((num_rows, hidden_size), dtype)
    return zeros, zeros


def maxout_cell(
    cell: Float[Array, "B D"], gates: Float[Array, "B gates"], image: Float[Array, "B maxout"]
) -> LSTMCarry:
    """Take a step of the LSTM of Rennie et al. 2017 (section 2.2), where the image enters the cell alone.

    With φ a maxout of two: c' = σ(i) φ(z + image) + σ(f) c,  h' = σ(o) tanh(c').

    Args:
        cell: c.
        gates: i, f, o and both halves of z before their nonlinearities [B, 5 D], of the word and h.
        image: the image's share of both halves of z [B, 2 D].
    """
    i, f, o, first, second = jnp.split(gates, 5, axis=-1)
    of_first, of_second = jnp.split(image, 2, axis=-1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.maximum(first + of_first, second + of_second)
    return cell, nn.sigmoid(o) * jnp.tanh(cell)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def lstm_cell(forget_bias: float, gates: Float[Array, "B gates"], cell: Float[Array, "B D"]) -> LSTMCarry:
    """Return the new (c, h), given the gates i, j, f, o before their nonlinearities and c; see `LSTM`.

    It has a derivative by hand, which needs 6 arrays of a step: XLA keeps 11, some of them twice.
    """
    return _cell_forward(forget_bias, gates, cell)[0]


def _cell_forward(
    forget_bias: float, gates: Float[Array, "B gates"], cell: Float[Array, "B D"]
) -> tuple[LSTMCarry, tuple[Array, ...]]:
    i, j, f, o = jnp.split(gates, 4, axis=-1)
    i, j, f, o = nn.sigmoid(i), jnp.tanh(j), nn.sigmoid(f + forget_bias), nn.sigmoid(o)
    new_cell = f * cell + i * j
    squashed = jnp.tanh(new_cell)
    return (new_cell, o * squashed), (i, j, f, o, cell, squashed)


def _cell_backward(
    forget_bias: float, residuals: tuple[Array, ...], cotangents: LSTMCarry
) -> tuple[Float[Array, "B gates"], Float[Array, "B D"]]:
    i, j, f, o, cell, squashed = residuals
    d_cell, d_h = cotangents
    d_cell += d_h * o * (1 + squashed) * (1 - squashed)
    d_i, d_j, d_f, d_o = d_cell * j, d_cell * i, d_cell * cell, d_h * squashed
    d_gates = [d_i * i * (1 - i), d_j * (1 + j) * (1 - j), d_f * f * (1 - f), d_o * o * (1 - o)]
    return jnp.concatenate(d_gates, axis=-1), d_cell * f


lstm_cell.defvjp(_cell_forward, _cell_backward)


class LSTM(nn.Module):
    """Long short-term memory with the parameters and equations of TensorFlow 1's `LSTMCell`.

    One kernel [E + D, 4 D] acts on [x, h]; its columns are the gates i, j, f, o (Hochreiter and Schmidhuber 1997, with
    the forget gate of Gers et al. 2000):

        c' = σ(f + forget_bias) c + σ(i) tanh(j),    h' = σ(o) tanh(c')

    Attributes:
        input_size: E, the width of x.
        hidden_size: D, the width of c and h.
        forget_bias: added to f in the cell, beside the trained bias.
        dtype: of the computation; parameters are float32.
    """

    input_size: int
    hidden_size: int
    forget_bias: float = 1.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        shape = (self.input_size + self.hidden_size, 4 * self.hidden_size)
        self.kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape[1:])

    def step(
        self, carry: LSTMCarry, x: Float[Array, "B E"], more: Float[Array, "B gates"] | float = 0.0
    ) -> tuple[LSTMCarry, Float[Array, "B D"]]:
        """Take one time step; return the new (c, h) and the output h.

        Args:
            carry: (c, h).
            x: the input.
            more: what else acts on the gates before their nonlinearities.
        """
        c, h = carry
        # One product of [x, h], also where all x are known before: on a CPU it is faster than one of h beside a large
        # one of all x, whose halves of the kernel would be cut out of it anew at every step.
        gates = jnp.concatenate([x.astype(self.dtype), h], axis=-1) @ self.kernel.astype(self.dtype)
        gates += self.bias.astype(self.dtype)[None, :] + more
        c, h = lstm_cell(self.forget_bias, gates, c)
        return (c, h), h

    def __call__(self, carry: LSTMCarry, xs: Float[Array, "B L E"]) -> tuple[LSTMCarry, Float[Array, "B L D"]]:
        """Run over a sequence; return the last (c, h) and the outputs at every step."""
        carry, outputs = _run(self, carry, swap_time(xs))
        return carry, swap_time(outputs)


def _scan(
    lstm: LSTM, carry: LSTMCarry, xs: Float[Array, "L B E"], more: Float[Array, "L B gates"] | float = 0.0
) -> tuple[LSTMCarry, Float[Array, "L B D"]]:
    in_axes = (0, nn.broadcast if isinstance(more, float) else 0)
    scan = nn.scan(LSTM.step, variable_broadcast="params", split_rngs={"params": False}, in_axes=in_axes)
    return scan(lstm, carry, xs, more)


def _forward(lstm: LSTM, carry: LSTMCarry, xs: Float[Array, "L B E"]) -> tuple[Any, Any]:
    """Run with zeros added to the gates, whose gradient is that of the gates."""
    zeros = jnp.zeros((*xs.shape[:2], 4 * lstm.hidden_size), lstm.dtype)
    (last, outputs), pull_back = nn.vjp(_scan, lstm, carry, xs, zeros, vjp_variables=False)
    return (last, outputs), (pull_back, carry, xs, outputs)


def _backward(residuals: Any, cotangent: Any) -> tuple[Any, LSTMCarry, Float[Array, "L B E"]]:
    pull_back, carry, xs, outputs = residuals
    _, d_carry, d_xs, d_gates = pull_back(cotangent)
    inputs = jnp.concatenate([xs.astype(outputs.dtype), jnp.concatenate([carry[1][None], outputs[:-1]])], axis=-1)
    # Not of flat arrays: time and captions in one axis cannot be divided among devices, which would gather all of it.
    d_kernel = jnp.tensordot(inputs, d_gates, ((0, 1), (0, 1)), preferred_element_type=jnp.float32)
    d_bias = jnp.sum(d_gates, axis=(0, 1), dtype=jnp.float32)
    return {"params": {"kernel": d_kernel, "bias": d_bias}}, d_carry, d_xs


# The gradient of the kernel is one product of all steps behind the backward scan, in place of one a step that is added
# up: a quarter less time on a CPU (experiments/benchmarks/lstm_variants.py), and a sum in float32 of bfloat16 terms.
_run = nn.custom_vjp(_scan, forward_fn=_forward, backward_fn=_backward)


def scan_words(step: Any, decoder: nn.Module, carry: Carry, words: Any, context: Context) -> tuple[Carry, Any]:
    """Scan a step of a decoder over the words of captions, its parameters and the context the same at every word.

    Args:
        step: method of the decoder's class, (self, carry, word, context) -> (carry, output).
        decoder: the module.
        carry: state before the first word, leaves [B, …].
        words: inputs by word, leaves [L, B, …], of which a step reads one block of memory: see `swap_time`.
        context: of the images.

    Returns:
        The last state, and the outputs, leaves [B, L, …].
    """
    scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=(0, nn.broadcast))
    carry, outputs = scan(decoder, carry, words, context)
    return carry, jax.tree.map(swap_time, outputs)


def swap_time(x: Array) -> Array:
    """Swap captions and time, the first two axes; of what enters a scan best while it is small, words and not gates."""
    return jnp.swapaxes(x, 0, 1)
