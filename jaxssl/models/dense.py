"""The module of a dense map in any form: whole, factorised, in blocks, in int8."""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers
from jax.typing import DTypeLike

from compress.errors import InputError
from compress.quantize import rounded
from jaxssl.models import choice
from jaxssl.models.activations import FUNCTIONS, Activation
from jaxssl.models.block_product import block_product
from jaxssl.models.int8_product import int8_product
from jaxssl.models.keys import Keys
from jaxssl.models.layers import KEPT, Init, encoder_init
from jaxssl.models.packed import check_dtype, packs
from jaxssl.models.part import Blocks, Full, Map, Rank
from jaxssl.runtime import native
from jaxssl.runtime.native import gradients


class Dense(nnx.Module):
    """A dense map `y = x · kernel + bias`, or `y = x · down · up + bias` when it has a rank; some have no bias.

    `kernel` is (*inputs, *outputs); factorised, `down` is (*inputs, rank) and `up` is (rank, *outputs); packed, the
    kernel is given by `blocks` and `index` (`compress.blocks`). In int8, `kernel`, `down` and `up` have scales
    beside them (`compress.quantize`), and inputs are quantised as they come (`jaxssl.models.int8_product`). In a
    prepared model weights are packed (`jaxssl.models.packed`), where our kernels take them.
    """

    def __init__(
        self,
        spec: Map,
        *,
        prepared: bool = False,
        kernel_init: Init = encoder_init,
        bias_init: Init = initializers.zeros,
        rngs: Keys,
    ):
        form, inputs, outputs = spec.form, spec.inputs, spec.outputs
        self.contracted, self.outputs, self.fan_in = len(inputs), outputs, math.prod(inputs)
        self.int8, self.packed = form.int8, prepared and packs(spec.matrix(spec.name))
        self.listening = self.telling = self.learning = False
        match form:
            case Blocks(size, _):
                index = _spread(math.prod(inputs), math.prod(outputs), form)
                self.blocks = nnx.Param(kernel_init(rngs.params(), (*index.shape, size, size)))
                self.index = nnx.Param(jnp.asarray(index))
            case Rank(rank, int8):
                self._hold("down", kernel_init(rngs.params(), (*inputs, rank)), len(inputs), int8)
                self._hold("up", kernel_init(rngs.params(), (rank, *outputs)), 1, int8)
            case Full(int8):
                self._hold("kernel", kernel_init(rngs.params(), (*inputs, *outputs)), len(inputs), int8)
        if spec.bias:
            self.bias = nnx.Param(bias_init(rngs.params(), outputs, jnp.float32))

    def __call__(
        self, x: Array, activation: Activation = "linear", *, norm: Callable[[Array], Array] | None = None
    ) -> Array:
        """Map the last axes of `x: (batch, time, *inputs)` to (batch, time, *outputs), and apply an activation.

        A norm of what is mapped is given here, where there is one, so that it hears no more of a unit than its gate
        lets through, and nothing of what it adds gets around the gate.
        """
        x = x if norm is None else norm(self._gated(x))
        x = self._gated(x)
        if self.listening:
            self.heard = nnx.Intermediate(x)
        if self.packed and not self.telling:
            last: native.Activation = "gelu" if activation == "gelu" else "linear"
            y = self._by_kernels(x, last, self.added(jnp.float32))
            return y if activation == last else FUNCTIONS[activation](y)
        if self.learning and self._has_gradients(x):
            bias = self.added(jnp.float32)
            y = gradients.linear(x.reshape(-1, self.fan_in), self._matrix, bias.reshape(-1))
            y = checkpoint_name(y.reshape(*x.shape[:2], *self.outputs), KEPT)
            return FUNCTIONS[activation](y)
        y = self.product(x)
        if self.telling:
            self.made = nnx.Intermediate(y)
        y = checkpoint_name(y + jnp.expand_dims(self.added(x.dtype), (0, 1)) if hasattr(self, "bias") else y, KEPT)
        return FUNCTIONS[activation](y)

    def product(self, x: Array) -> Array:
        """Map an input that is gated already, without bias and activation."""
        if self.packed:
            return self._by_kernels(x, "linear", jnp.zeros(self.outputs))
        if hasattr(self, "kernel"):
            return self._product(x, "kernel", self.contracted)
        if hasattr(self, "blocks"):
            y = block_product(x.reshape(*x.shape[:2], -1), self.blocks[...], self.index[...])
            return y.reshape(*x.shape[:2], *self.outputs)
        return self._product(self._product(x, "down", self.contracted), "up", 1)

    def _has_gradients(self, x: Array) -> bool:
        """Tell whether our kernels have the derivatives of this map."""
        whole = hasattr(self, "kernel") and not self.int8
        return whole and gradients.has(x.dtype, self.fan_in, math.prod(self.outputs))

    @property
    def _matrix(self) -> Array:
        """The kernel, (inputs, outputs) float32."""
        return self.kernel[...].astype(jnp.float32).reshape(self.fan_in, -1)

    def _gated(self, x: Array) -> Array:
        """Multiply units by their gates, (batch or 1, time or 1, units), where they have some."""
        if not hasattr(self, "gate"):
            return x
        return x * jnp.expand_dims(self.gate[...].astype(x.dtype), range(3, x.ndim))

    def added(self, dtype: DTypeLike) -> Array:
        """Return the bias; zeros where there is none."""
        return self.bias[...].astype(dtype) if hasattr(self, "bias") else jnp.zeros(self.outputs, dtype)

    def bias_alone(self, x: Array) -> Array:
        """Return what the map gives for an input of no units: its bias at every frame of `x: (batch, time, …)`."""
        bias = self.added(x.dtype)
        return jnp.broadcast_to(bias, (*x.shape[:2], *bias.shape))

    def _by_kernels(self, x: Array, activation: native.Activation, bias: Array) -> Array:
        """Map `x` by our kernels."""
        weights = [name for name in ("kernel", "down", "up") if hasattr(self, name)]
        if self.int8:
            named = [each for name in weights for each in (name, f"{name}_scale")]
            return native.dense_int8(x, *(getattr(self, name)[...] for name in named), bias, activation=activation)
        packed = [getattr(self, name)[...] for name in weights]
        check_dtype(packed[0], x.dtype)
        return native.dense(x, *packed, bias, activation=activation)

    def _hold(self, name: str, array: Array, inputs: int, int8: bool) -> None:
        """Take an array of weights, of which the first `inputs` axes are inputs, as it is, in int8 or packed."""
        fan_in = math.prod(array.shape[:inputs])
        if int8:
            array, scale = rounded(array, tuple(range(inputs)))
            setattr(self, f"{name}_scale", nnx.Param(scale))
        if self.packed:
            array = (native.pack_int8 if int8 else partial(native.pack, dtype=jnp.float32))(array.reshape(fan_in, -1))
        setattr(self, name, nnx.Param(array))

    def _product(self, x: Array, name: str, contracted: int) -> Array:
        weights = getattr(self, name)[...]
        if hasattr(self, f"{name}_scale"):
            return int8_product(x, weights, getattr(self, f"{name}_scale")[...], contracted)
        sums = choice.sums()
        return jnp.tensordot(x, weights.astype(x.dtype), contracted, preferred_element_type=sums).astype(x.dtype)


def _spread(ins: int, outs: int, form: Blocks) -> np.ndarray:
    """Choose a fresh packed map's input blocks, (columns, kept) int32: one column goes on where the last one ended.

    Raises:
        InputError: there are no such blocks.
    """
    size, kept = form.size, form.kept
    if size < 1 or ins % size or outs % size or not 1 <= kept <= ins // size or not outs:
        raise InputError(f"{kept} blocks of {size} in each column cannot make up a map of {ins} × {outs}")
    rows = np.arange(outs // size)[:, None] * kept + np.arange(kept)[None]
    return np.sort(rows % (ins // size), axis=1).astype(np.int32)
