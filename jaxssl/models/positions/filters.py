"""A long grouped kernel in the forms that run fastest on a device, made once; which one runs, the frames say."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxssl.models import choice
from jaxssl.models.banded import banded, bands
from jaxssl.models.fourier import filtered, spectrum
from jaxssl.models.layers import gelu
from jaxssl.models.packed import check_dtype
from jaxssl.runtime import native


def forms(kernel: Array, *, groups: int, dtype: DTypeLike = jnp.float32) -> Mapping[str, Array]:
    """Return a kernel, (taps, in / groups, out), in the forms that a prepared model has here, for running in `dtype`.

    Returns:
        `bands` (`jaxssl.models.banded`), or `spectrum` (`jaxssl.models.fourier`), which stays float32, and, where our
        kernels run, `packed`, a set of weights for each group.
    """
    if choice.prepared_positions() == "banded":
        return {"bands": bands(kernel, groups=groups).astype(dtype)}
    made = {"spectrum": spectrum(kernel, groups=groups)}
    if choice.packs():
        taps, each, outputs = kernel.shape
        sets = kernel.reshape(taps * each, groups, outputs // groups).transpose(1, 0, 2)
        made["packed"] = native.pack(sets, dtype)
    return made


class Filters(nnx.Module):
    """A kernel with a bias, and a GELU behind them.

    Args:
        kernel: (taps, in / groups, out).
        groups: of channels.
    """

    def __init__(self, kernel: Array, *, groups: int):
        self.taps, self.groups = kernel.shape[0], groups
        for name, array in forms(kernel, groups=groups).items():
            setattr(self, name, nnx.Param(array))

    def __call__(self, x: Array, bias: Array, padding: tuple[int, int]) -> Array:
        """Convolve, add the bias and apply a GELU.

        Args:
            x: (batch, time, in).
            bias: (out,).
            padding: zeros before and after: taps - 1 in all, so that time stays, or none, of a stream.

        Returns:
            (batch, time + padding - taps + 1, out).
        """
        if hasattr(self, "packed") and choice.short(x.shape[1] + sum(padding) - self.taps + 1, x.dtype):
            return self._product(jnp.pad(x, ((0, 0), padding, (0, 0))), bias)
        behind = self.taps - 1 - padding[0]  # both forms keep time as it is; what that adds is cut off
        if hasattr(self, "bands"):
            y = banded(x, self.bands[...], taps=self.taps, padding=(padding[0], behind))
        else:
            y = filtered(x, self.spectrum[...], taps=self.taps, padding=(padding[0], behind))
        return gelu(y[:, : x.shape[1] + padding[1] - behind] + bias.astype(x.dtype)[None, None])

    def _product(self, x: Array, bias: Array) -> Array:
        """Convolve without padding, by a product for each group of what it hears."""
        packed = self.packed[...]
        check_dtype(packed, x.dtype)
        batch, time, width = x.shape
        each, rows = width // self.groups, time - self.taps + 1
        apart = x.reshape(batch, time, self.groups, each).swapaxes(1, 2).reshape(batch * self.groups, time * each)
        y = native.windows(apart, packed, bias.reshape(self.groups, -1), rows=rows, stride=each, activation="gelu")
        return y.reshape(batch, self.groups, rows, -1).swapaxes(1, 2).reshape(batch, rows, -1)
