"""The loop: one update after the other, hooks after each, until the last one or until it is told to stop."""

from collections.abc import Callable, Iterator, Sequence

from jaxssl.runtime import memory, room
from jaxssl.training.losses import Sums
from jaxssl.training.step import Arrays, State, Step

Hook = Callable[[int, State, Sums], None]


def train(
    step: Step,
    state: State,
    batches: Iterator[Sequence[Arrays]],
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    stop: Callable[[int], bool] = lambda number: False,
) -> State:
    """Update until `steps` updates are done in all, or until `stop(number)` says so after one.

    Args:
        step: one update.
        state: where to start; its memory is reused.
        batches: for each update, the batches whose gradients are averaged.
        steps: the last update's number.
        hooks: called after each update with its number, the new state and what the loss reports; they read the state
            and may not keep it.
        stop: asked after each update.
    """
    try:
        for number in range(int(state.step) + 1, steps + 1):
            state, sums = step(state, next(batches))
            memory.tidy()
            for hook in hooks:
                hook(number, state, sums)
            if stop(number):
                break
    finally:
        room.updates.leave()
    return state


def every(period: int, hook: Hook, *, last: int) -> Hook:
    """Call a hook at each multiple of `period` and at update `last`."""

    def sometimes(number: int, state: State, sums: Sums) -> None:
        if number % period == 0 or number == last:
            hook(number, state, sums)

    return sometimes
