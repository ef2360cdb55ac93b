"""How equal layers run one after the other, and what a gradient keeps of them and what it computes again."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxssl.models import choice
from jaxssl.models.encoder_layer import EncoderLayer
from jaxssl.models.layers import KEPT
from jaxssl.runtime.native.gradients import later

Stack = Literal["unroll", "scan", "remat"]
Run = Callable[[EncoderLayer, Array, Array | None, Array | None, Any], tuple[Array, Any]]


def run_all(
    run: Run,
    layers: Sequence[EncoderLayer],
    x: Array,
    valid: Array | None,
    keys: Array | None,
    stack: Stack,
    carry: Any,
) -> tuple[list[Array], Any]:
    """Run equal layers one after the other; return each one's output, and what the last lends to a next layer.

    "unroll" writes each layer out, and a gradient keeps what XLA likes. With "scan" it keeps what dense maps and
    attention give and computes norms, GELU and dropout again; with "remat" it keeps one (batch, time, width) array of
    each layer. Both are one scanned program for all layers, which compiles faster; but where our kernels train, layers
    are written out there too, which spares copies of all parameters and gradients, one layer's beside the other's.

    Args:
        run: runs one layer, given x, the valid frames, a key and what the layer before lends.
        layers: equal ones.
        x: (batch, time, width), the first one's input.
        valid: (batch, time); None: all.
        keys: of dropout, one for each layer; None without any.
        stack: how.
        carry: what the layer before lends to the first.
    """
    # Of norms alone, with no map between them, XLA makes one loop for each that has all before it once more.
    if (stack == "unroll" and not layers[0].empty) or len(layers) == 1:
        outputs = []
        for i, layer in enumerate(layers):
            x, carry = run(layer, x, valid, None if keys is None else keys[i], carry)
            outputs.append(x)
        return outputs, carry
    kept = jax.checkpoint_policies.save_only_these_names(KEPT) if stack == "scan" else None
    if keys is not None and choice.learns():
        return _written_out(run, layers, x, valid, keys, kept, carry), carry
    return _scanned(run, layers, x, valid, keys, kept, carry), carry


def _scanned(
    run: Run,
    layers: Sequence[EncoderLayer],
    x: Array,
    valid: Array | None,
    keys: Array | None,
    kept: Callable[..., bool] | None,
    carry: Any,
) -> list[Array]:
    """Run layers as one program, given their parameters in turn; what the first takes all take."""
    graph = nnx.graphdef(layers[0])
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[nnx.state(layer) for layer in layers])

    def body(x: Array, each: tuple[Any, Array | None]) -> tuple[Array, Array]:
        state, key = each
        x, _ = run(nnx.merge(graph, state), x, valid, key, carry)
        return x, x

    # A scan keeps the two passes apart.
    _, outputs = jax.lax.scan(jax.checkpoint(body, policy=kept, prevent_cse=False), x, (states, keys))
    return list(outputs)


def _written_out(
    run: Run,
    layers: Sequence[EncoderLayer],
    x: Array,
    valid: Array | None,
    keys: Array,
    kept: Callable[..., bool] | None,
    carry: Any,
) -> list[Array]:
    """Run layers as a program of each; what the first takes all take."""
    graph, outputs = nnx.graphdef(layers[0]), []

    def body(x: Array, state: Any, valid: Array | None, key: Array, carry: Any) -> Array:
        return run(nnx.merge(graph, state), x, valid, key, carry)[0]

    whole = _again(body, kept)
    for layer, key in zip(layers, keys, strict=True):
        x = whole(x, nnx.state(layer), valid, key, carry)
        outputs.append(x)
    return outputs


def _again(function: Callable[..., Array], kept: Callable[..., bool] | None) -> Callable[..., Array]:
    """Have a function's gradient compute again what `kept` does not keep, in a program on our kernels.

    `jax.checkpoint` alone does not bring that about: XLA's CPU compiler takes its barriers away, and merges what was to
    be computed again with what was computed first.

    Args:
        function: of (batch, time, width) and further arguments, to the same shape.
        kept: a policy of `jax.checkpoint`; None: nothing is kept but the arguments.
    """

    @jax.custom_vjp
    def whole(x: Array, *others: Any) -> Array:
        return function(x, *others)

    def forward(x: Array, *others: Any) -> tuple[Array, Any]:
        return jax.vjp(jax.checkpoint(function, policy=kept, prevent_cse=False), x, *others)

    def backward(back: Any, given: Array) -> Any:
        leaves, tree = jax.tree.flatten(back)

        def waiting(leaf: Array) -> Array:
            frames = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape[:2] == given.shape[:2]
            return later(leaf, given) if frames else leaf  # parameters are never computed again

        return jax.tree.unflatten(tree, map(waiting, leaves))(given)

    whole.defvjp(forward, backward)
    return whole
