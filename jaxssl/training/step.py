"""One update: a loss differentiated through a view of the parameters, an optax optimiser, and nothing else.

`view` is how the loss sees the parameters: masks, gates, truncation, fake quantisation. What it needs and training
does not change travels in `State.held`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.model import Output, Params, apply
from jaxssl.models.stack import Stack
from jaxssl.runtime import room
from jaxssl.training.losses import Sums, ratio
from jaxssl.training.optimizer import skipped
from jaxssl.training.spikes import Policy, Spikes, begun_anew, none_yet, passed_over, step_size, watched

Arrays = Mapping[str, Array]  # inputs, lengths, labels, mask; as `jaxssl.data.batches.Batch` names them
Loss = Callable[[Output, Array, Array], tuple[Array, Sums]]
View = Callable[[Any, Any], Params]
Objective = Callable[[Any, Any, Arrays, Array | None], tuple[Array, Sums]]  # params, held, batch, dropout key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that training changes.

    Attributes:
        step: updates done, () int32; skipped ones count.
        batches: batches seen, () int32; more than updates when gradients are accumulated.
        params: float32 parameters.
        optimizer: optax's state.
        key: raw random key, from which each batch's randomness is derived; it never changes.
        spikes: what is remembered of losses and gradients, by which spikes are known.
        held: arrays that the view needs and the optimiser leaves alone.
    """

    step: Array
    batches: Array
    params: Any
    optimizer: Any
    key: Array
    spikes: Spikes
    held: Any = ()


def start(params: Any, optimizer: optax.GradientTransformation, *, seed: int, held: Any = ()) -> State:
    """Return the state before the first update; `params` are copied, because updates reuse their memory.

    Raises:
        InputError: an array has no gradient, as the block numbers of a packed map or the weights of an int8 one.
    """
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            remedy = "of an int8 map? dequantize" if leaf.dtype == jnp.int8 else "of a packed map? unpack"
            raise InputError(f"{name}: {leaf.dtype} has no gradient; {remedy} the model before training")
    params, begun = _begun(optimizer.init, params)
    zero = jnp.zeros((), jnp.int32)
    return State(zero, zero.copy(), params, begun, jax.random.key_data(jax.random.key(seed)), none_yet(), held)


@partial(jax.jit, static_argnums=0)
def _begun(init: Callable[[Any], Any], params: Any) -> tuple[Any, Any]:
    """Copy parameters and begin with an optimiser by one program, where each shape of them had several of its own."""
    params = jax.tree.map(jnp.copy, params)
    with jax.numpy_dtype_promotion("standard"):
        return params, init(params)


def change(
    state: State, edit: Callable[[Any], Any], *, held: Any = None, reset: optax.GradientTransformation | None = None
) -> State:
    """Change the parameters between two updates, and the optimiser's moments with them.

    What is known of recent losses is forgotten, for the changed model has others.

    Args:
        state: as it is.
        edit: applied to the parameters and to every tree of the optimiser that has their paths; a cut, for example.
        held: what the view needs from now on; None: as before.
        reset: forget the moments and start this optimiser anew (what the study does after each head or row event);
            None: moments are changed like the parameters.
    """
    form: Any = jax.tree.structure(state.params)
    params = edit(state.params)

    def alike(node: Any) -> bool:
        return isinstance(node, dict) and jax.tree.structure(node) == form

    if reset is None:
        optimizer = jax.tree.map(lambda node: edit(node) if alike(node) else node, state.optimizer, is_leaf=alike)
    else:
        with jax.numpy_dtype_promotion("standard"):
            optimizer = reset.init(params)
    kept = state.held if held is None else held
    return replace(state, params=params, optimizer=optimizer, spikes=begun_anew(state.spikes), held=kept)


def as_seen(params: Any, held: Any) -> Params:
    """Show the loss the parameters as they are."""
    return params


@dataclass(frozen=True)
class Step:
    """The programs of one update; `make_step` builds them.

    Attributes:
        whole: gradient and update in one, for a single batch.
        gradient: one batch's share of an accumulated gradient.
        update: the update with an accumulated gradient and the mean loss.
    """

    whole: Callable[[State, Arrays], tuple[State, Sums]]
    gradient: Callable[[State, Arrays, Any, float], tuple[Any, Sums]]
    update: Callable[[State, Any, Array, int], tuple[State, Sums]]

    def __call__(self, state: State, batches: Sequence[Arrays]) -> tuple[State, Sums]:
        """Update once with the mean gradient of `batches`; return the new state and what the loss reports.

        The memory of `state` is reused: it cannot be read afterwards.
        """
        if len(batches) == 1:
            return room.updates.run(self.whole, state, batches[0])
        gradient: Any = jax.tree.map(jnp.zeros_like, state.params)
        total: Sums = {}
        for i, batch in enumerate(batches):
            seen = replace(state, batches=state.batches + i)
            gradient, sums = room.updates.run(self.gradient, seen, batch, gradient, 1 / len(batches))
            total = {name: _added(total.get(name), pair) for name, pair in sums.items()}
        state, more = self.update(state, gradient, ratio(*total["loss"]), len(batches))
        return state, total | more


def predicting(
    arch: Arch, loss: Loss, *, view: View = as_seen, dtype: Any = jnp.float32, stack: Stack = "unroll"
) -> Objective:
    """Return the objective `loss(apply(arch, view(params), batch))`; arguments as `make_step`."""

    def objective(params: Any, held: Any, batch: Arrays, key: Array | None) -> tuple[Array, Sums]:
        seen, mask = view(params, held), batch["mask"]
        output = apply(arch, seen, batch["inputs"], batch["lengths"], mask=mask, key=key, dtype=dtype, stack=stack)
        return loss(output, batch["labels"], mask)

    return objective


def make_step(
    arch: Arch,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    view: View = as_seen,
    dtype: Any = jnp.float32,
    stack: Stack = "unroll",
    shardings: State | None = None,
    spikes: Policy | None = None,
) -> Step:
    """Build the update `params ← optimizer(∇ loss(apply(arch, view(params), batch)))`.

    Args:
        arch: of the parameters that `view` returns.
        loss: of the model's output, labels and mask.
        optimizer: any optax transformation, non-finite gradients skipped (`Optimizer.build`).
        view: how the loss sees the parameters.
        dtype: of the computation; parameters, gradients and moments stay float32.
        stack: see `apply`.
        shardings: where the state lives, when it is spread over devices.
        spikes: which updates are passed over although they are finite; None: none is.
    """
    goal = predicting(arch, loss, view=view, dtype=dtype, stack=stack)
    return compile_step(goal, optimizer, shardings=shardings, spikes=spikes)


def compile_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    shardings: State | None = None,
    spikes: Policy | None = None,
) -> Step:
    """Build the update `params ← optimizer(∇ objective(params, held, batch, key))`; arguments as `make_step`."""

    def value(params: Any, state: State, batch: Arrays) -> tuple[Array, Sums]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.batches)
        return objective(params, state.held, batch, key)

    def gradient(state: State, batch: Arrays, total: Any, share: float) -> tuple[Any, Sums]:
        found, sums = jax.grad(value, has_aux=True)(state.params, state, batch)
        return jax.tree.map(lambda t, g: t + share * g, total, found), sums

    def update(state: State, found: Any, loss: Array, batches: int) -> tuple[State, Sums]:
        one, norm, number, seen = jnp.ones((), jnp.float32), optax.tree.norm(found), state.step + 1, state.spikes
        if spikes is not None:
            spike, seen = watched(seen, spikes, loss, norm, number)
            found = passed_over(spike, found)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias correction multiplies integers and floats
            updates, optimizer_state = optimizer.update(found, state.optimizer, state.params)
        if spikes is not None:
            updates = optax.tree.scale(step_size(seen, spikes), updates)
        after = replace(
            state,
            step=number,
            batches=state.batches + batches,
            params=optax.apply_updates(state.params, updates),
            optimizer=optimizer_state,
            spikes=seen,
        )
        counts = {"skipped": skipped(optimizer_state)[0]} | ({} if spikes is None else {"spikes": seen.total})
        told = {name: (count.astype(jnp.float32), one) for name, count in counts.items()}
        return after, {"gradient_norm": (norm, one), **told}

    def whole(state: State, batch: Arrays) -> tuple[State, Sums]:
        found, sums = jax.grad(value, has_aux=True)(state.params, state, batch)
        after, more = update(state, found, ratio(*sums["loss"]), 1)
        return after, sums | more

    out = None if shardings is None else (shardings, None)
    total = None if shardings is None else (shardings.params, None)
    return Step(
        whole=jax.jit(whole, donate_argnums=0, out_shardings=out),
        gradient=jax.jit(gradient, donate_argnums=2, out_shardings=total),
        update=jax.jit(update, donate_argnums=0, static_argnums=3, out_shardings=out),
    )


def make_evaluation(
    arch: Arch, loss: Loss, *, view: View = as_seen, dtype: Any = jnp.float32
) -> Callable[[Any, Any, Arrays], Sums]:
    """Build `evaluate(params, held, batch) -> sums`, without dropout."""
    return compile_evaluation(predicting(arch, loss, view=view, dtype=dtype))


def compile_evaluation(objective: Objective) -> Callable[[Any, Any, Arrays], Sums]:
    """Build `evaluate(params, held, batch) -> sums` of any objective, without dropout."""
    return jax.jit(lambda params, held, batch: objective(params, held, batch, None)[1])


def _added(one: tuple[Array, Array] | None, two: tuple[Array, Array]) -> tuple[Array, Array]:
    return two if one is None else (one[0] + two[0], one[1] + two[1])
