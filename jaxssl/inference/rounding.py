"""What a faster dtype costs: how far each layer of a model gets from what it is in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxssl.inference.encode import encode
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params


def errors(arch: Arch, params: Params, inputs: jax.Array, *, dtype: Any) -> tuple[float, ...]:
    """Run a model in float32, and prepared in another dtype; compare all hidden layers.

    Args:
        arch: the model.
        params: its parameters.
        inputs: waveforms or features, as `jaxssl.inference.encode.encode` takes them, none padded.
        dtype: the other one, or "auto".

    Returns:
        ‖other − float32‖ / ‖float32‖ over all frames, of each hidden layer, the input of the first among them.
    """
    ready, arrays = prepared(arch, params, dtype=dtype)
    plain = jax.jit(lambda params, inputs: encode(arch, params, inputs).hidden)(params, inputs)
    other = jax.jit(lambda params, inputs: encode(ready, params, inputs, dtype=dtype).hidden)(arrays, inputs)
    return tuple(_relative(a.astype(jnp.float32), b) for a, b in zip(other, plain, strict=True))


def _relative(found: jax.Array, wanted: jax.Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
