"""The loop updates as often as it should, and draws no batch too many."""

import itertools
from dataclasses import dataclass

import pytest

from jaxssl.runtime import memory, room
from jaxssl.training.loop import every, train
from jaxssl.training.step import Step


@dataclass
class Count:
    """Stands for a training state: how many updates it has seen, and on what."""

    step: int = 0
    seen: tuple = ()


def step(state, batches):
    return Count(state.step + 1, (*state.seen, batches)), {"updates": state.step + 1}


def run(start=0, *, steps=7, hooks=(), stop=lambda number: False):
    """Train on 0, 1, 2, …; the state and the next batch that nobody drew."""
    stream = itertools.count()
    state = train(step, Count(start), stream, steps=steps, hooks=hooks, stop=stop)
    return state, next(stream)


@pytest.mark.parametrize(("start", "updates"), [(0, 7), (3, 4), (7, 0), (9, 0)])
def test_updates_are_counted_from_where_the_state_stands(start, updates):
    """As many batches are drawn as updates are made: a position saved afterwards is that of the next batch."""
    state, left = run(start)
    assert (state.step, left) == (start + updates, updates)
    assert state.seen == tuple(range(updates))


def test_hooks_see_each_update_in_order():
    seen = []
    hooks = [
        every(3, lambda number, state, sums: seen.append(("a", number, state.step, sums["updates"])), last=7),
        every(7, lambda number, state, sums: seen.append(("b", number, state.step, sums["updates"])), last=7),
    ]
    run(hooks=hooks)
    assert seen == [("a", 3, 3, 3), ("a", 6, 6, 6), ("a", 7, 7, 7), ("b", 7, 7, 7)]


def test_what_lies_free_is_looked_at_after_each_update(monkeypatch):
    looked = []
    monkeypatch.setattr(memory, "tidy", lambda: looked.append(True))
    run(3)
    assert len(looked) == 4


def test_a_resumed_run_calls_hooks_at_the_same_updates():
    def numbers(start):
        seen = []
        run(start, hooks=[every(2, lambda number, state, sums: seen.append(number), last=7)])
        return seen

    assert numbers(0) == [2, 4, 6, 7]
    assert numbers(3) == [4, 6, 7]


def test_it_stops_after_an_update_and_its_hooks():
    seen = []
    state, left = run(hooks=[lambda number, state, sums: seen.append(number)], stop=lambda number: number == 4)
    assert (state.step, left, seen) == (4, 4, [1, 2, 3, 4])


def test_updates_run_in_one_place_that_is_left_however_training_ends(monkeypatch):
    events = []

    def through(program, *args):
        events.append("run")
        return program(*args)

    def fails(number, state, sums):
        if number == 2:
            raise RuntimeError("full disk")

    monkeypatch.setattr(room.updates, "run", through)
    monkeypatch.setattr(room.updates, "leave", lambda: events.append("leave"))
    whole = Step(whole=step, gradient=None, update=None)
    train(whole, Count(), ([number] for number in itertools.count()), steps=1)
    assert events == ["run", "leave"]
    with pytest.raises(RuntimeError, match="full disk"):
        train(whole, Count(), ([number] for number in itertools.count()), steps=5, hooks=[fails])
    assert events == ["run", "leave", "run", "run", "leave"]
