"""The product with an int8 matrix (`compress.quantize` says how it is stored): integers, and two scales at the end.

Every frame of the inputs is quantised as it comes, symmetrically and with a scale of its own, so that no frame's output
depends on what stands beside it. With t = max |x| / 127 over a frame's inputs, q = round(x / t), and the map's integers
w and scales s,

    y = t · s · Σ q · w

where the sum is of 8-bit products in 32 bits, which holds for 133 143 inputs and fewer.
"""

from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from compress.quantize import rounded


@partial(jax.custom_jvp, nondiff_argnums=(3,))
@partial(jax.jit, static_argnums=3)
def int8_product(x: Array, weights: Array, scale: Array, contracted: int) -> Array:
    """Multiply the last `contracted` axes of `x: (batch, time, *in)` by a matrix, to (batch, time, *out).

    Args:
        x: inputs; the output has their dtype.
        weights: (*in, *out) int8.
        scale: (*out,) float32.
        contracted: how many axes are inputs.

    Raises:
        InputError: it is differentiated, for the derivative of rounding is zero and nothing would be learned.
    """
    axes, outs = tuple(range(x.ndim - contracted, x.ndim)), scale.ndim
    values, gain = rounded(x, axes)
    sums = jax.lax.dot_general(
        values, weights, ((axes, tuple(range(contracted))), ((), ())), preferred_element_type=jnp.int32
    )
    gain = jnp.expand_dims(gain, tuple(range(gain.ndim, gain.ndim + outs)))
    return (sums.astype(jnp.float32) * gain * jnp.expand_dims(scale, tuple(range(gain.ndim - outs)))).astype(x.dtype)


@int8_product.defjvp
def _refused(*_: Any) -> NoReturn:
    raise InputError("int8 maps have no gradient; dequantize the model first (jaxssl.inference.specialise.dequantized)")
