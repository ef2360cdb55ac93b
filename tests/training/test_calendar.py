"""The calendar on lists of numbers: the study's own losses, and laws that hold for any."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.training import study_schedules
from jaxssl.training.calendar import Calendar, Gate, Progress, check, cubic, due, end, periodic, update

# The settings of the golden runs; run30's look-back is the default, which its 30 updates never reach.
CONVERGE = Calendar((8, 16, 24), 40, Gate(0.5, 3, -0.1, drop_next=True), delay=8)
RUN30 = Calendar((5, 15, 25), 30, Gate(0.9, drop_next=True), delay=10)


def losses(count, seed=0):
    """A falling curve that flattens, with noise."""
    noise = np.random.default_rng(seed).normal(size=count)
    return [3 * math.exp(-i / 40) + 0.05 * float(noise[i]) for i in range(count)]


def follow(calendar, numbers, progress=None, begin=1):
    """Run a calendar to its end; list (step, progress, fired)."""
    progress, step, rows = progress or Progress(), begin - 1, []
    while step < end(calendar, progress):
        step += 1
        assert step < 1000, "held for ever"
        progress, fired = update(calendar, progress, step, numbers[(step - 1) % len(numbers)])
        rows.append((step, progress, fired))
    return rows


def events(rows):
    """List what happened and when, as `(step, "pruned" | "held")`."""
    found, held = [], 0
    for step, progress, fired in rows:
        if fired or progress.held > held:
            found.append((step, "pruned" if fired else "held"))
        held = progress.held
    return found


@pytest.mark.parametrize(("run", "calendar"), [("converge", CONVERGE), ("run30", RUN30)])
def test_the_studys_gate_is_followed(shared, run, calendar):
    """Same smoothed loss and target after every update, same events at the same ones, same end."""
    trace = json.loads((shared / f"melhubert/weight/{run}/trace.json").read_text())
    rows = follow(calendar, trace["loss"])
    names = {"pruned": "pruned", "not-converge": "held"}
    theirs = [(row["global_step"], names[row["state"]]) for row in trace["events"] if row["kind"] == "weight"]
    assert events(rows) == theirs
    assert len(rows) == len(trace["loss"])
    last, stale = theirs[-1][0], "-inf"
    smooth = {row["global_step"]: row for row in trace["events"] if row["kind"] == "smooth"}
    for step, progress, fired in rows[:last]:
        then = smooth[step]
        target = None if then["tgt"] == stale else then["tgt"]  # theirs stays from the event before until taken anew
        for found, expected in ((progress.smooth, then["smooth"]), (progress.target, target)):
            assert (found is None) == (expected is None), step
            assert found is None or abs(found - expected) < 1e-6, step
        stale = then["tgt"] if fired else stale


def test_the_converging_run_in_numbers(shared):
    trace = json.loads((shared / "melhubert/weight/converge/trace.json").read_text())
    rows = follow(CONVERGE, trace["loss"])
    assert events(rows) == [(8, "pruned"), (16, "held"), (24, "pruned"), (32, "held"), (40, "pruned")]
    assert (rows[-1][0], end(CONVERGE, Progress()), end(CONVERGE, rows[-1][1])) == (56, 40, 56)
    dues = [due(CONVERGE, progress) for _, progress, _ in rows]
    assert [dues[step - 1] for step in (7, 8, 16, 24, 32, 39, 40)] == [8, 16, 24, 32, 40, 40, None]


def test_the_study_leaves_one_loss_out():
    """Without that, the smoothed loss begins one update earlier and knows every loss."""
    gate, numbers = Gate(0.5, 1, 0.0), [1.0, 2.0, 6.0, 7.0, 9.0]
    calendar = Calendar((100,), 100, gate, delay=2)
    smooth = [update_all(calendar, numbers[:n]).smooth for n in range(1, 6)]
    assert smooth == [None, None, 3.0, 5.0, 7.0]
    theirs = replace(calendar, gate=replace(gate, drop_next=True))
    assert [update_all(theirs, numbers[:n]).smooth for n in range(1, 6)] == [None, None, None, 3.0, 6.0]


def update_all(calendar, numbers):
    progress = Progress()
    for step, loss in enumerate(numbers, 1):
        progress, _ = update(calendar, progress, step, loss)
    return progress


def test_a_falling_loss_is_waited_for_and_a_flat_one_is_not():
    calendar = Calendar((10, 30, 50), 60, Gate(0.0, 10, 0.1), delay=20)
    assert events(follow(calendar, [1.0] * 60)) == [(10, "pruned"), (30, "pruned"), (50, "pruned")]
    strict = replace(calendar, gate=Gate(0.0, 10, 0.0))  # nothing fell, and nothing had to
    assert events(follow(strict, [1.0] * 60)) == [(10, "pruned"), (30, "pruned"), (50, "pruned")]
    falling = [-0.02 * step for step in range(1, 121)]  # by 0.2 in ten updates
    flat = falling[:60] + [falling[59]] * 60
    assert events(follow(calendar, flat)) == [
        (10, "pruned"),
        (30, "held"),
        (50, "held"),
        (70, "pruned"),
        (90, "pruned"),
    ]
    slower = [-0.0099 * step for step in range(1, 61)]  # by 0.099, within the tolerance
    assert events(follow(calendar, slower)) == [(10, "pruned"), (30, "pruned"), (50, "pruned")]


@pytest.mark.parametrize("seed", range(5))
def test_each_event_comes_once_and_in_order(seed):
    """Whatever the losses: every event once, at its own update plus what was put off by then."""
    calendar = Calendar((10, 30, 50, 70), 80, Gate(0.8, 8, 0.01), delay=15)
    check(calendar)
    rows = follow(calendar, losses(500, seed))
    fires = [(step, progress.held) for step, progress, fired in rows if fired]
    assert [step - 15 * held for step, held in fires] == list(calendar.events)
    assert rows[-1][0] == 80 + 15 * rows[-1][1].held
    assert rows[-1][1].fired == 4
    assert rows[-1][1].held > 0
    for step, progress, fired in rows:  # told of the same update again, nothing happens twice
        if fired:
            assert update(calendar, progress, step, 1.0)[1] is False


@pytest.mark.parametrize("gate", [None, Gate(0.8, 8, 0.01)])
def test_a_run_goes_on_from_any_update(gate):
    """The state, through JSON after any update, goes on as if nothing had happened."""
    calendar = Calendar((10, 30, 50), 60, gate, delay=15)
    numbers = losses(300)
    rows = follow(calendar, numbers)
    for step, progress, _ in rows:
        back = Progress(**json.loads(json.dumps(asdict(progress), allow_nan=False)))
        assert back == progress
        assert follow(calendar, numbers, back, step + 1) == rows[step:]


def test_scalars_of_a_device_become_json_values():
    calendar = Calendar((4, 20), 20, Gate(0.5, 5), delay=8)
    progress = update_all(calendar, [np.float32(2.5)] * 12)
    assert json.loads(json.dumps(asdict(progress)))["smooth"] == 2.5


class Unread:
    """A loss that is still on the device; looking at it would wait."""

    def __float__(self):
        raise AssertionError("the loss was read")


def test_only_a_gate_reads_losses():
    calendar = Calendar((3, 6), 8)
    assert events(follow(calendar, [None])) == events(follow(calendar, [Unread()])) == [(3, "pruned"), (6, "pruned")]
    gated = Calendar((3,), 8, Gate(), delay=8)
    with pytest.raises(ValueError, match="needs the loss of every update"):
        update(gated, Progress(), 1)
    done = Progress(fired=1)
    assert update(gated, done, 4, Unread()) == (done, False)  # nothing is left to judge


def test_losses_that_are_not_finite_are_left_out():
    calendar = Calendar((10, 30), 40, Gate(0.5, 8, 0.0), delay=15)
    clean = losses(300)
    for at in (1, 5, 12, 22, 30):
        broken = [*clean[: at - 1], math.nan, *clean[at:]]
        rows = follow(calendar, broken)
        assert all(row.smooth is None or math.isfinite(row.smooth) for _, row, _ in rows)
        assert [step - 15 * row.held for step, row, fired in rows if fired] == [10, 30]
    assert update_all(calendar, [1.0, math.inf, 2.0, 3.0]) == update_all(calendar, [1.0, 2.0, 3.0])


def test_event_steps():
    assert periodic(5, 10, 3) == (5, 15, 25)
    assert periodic(5, 10, 0) == ()


@pytest.mark.parametrize(
    ("initial", "final", "count"), [(0.0, 0.9, 7), (0.2, 0.95, 38), (3072, 512, 20), (0.0, 0.5, 1)]
)
def test_cubic_levels(initial, final, count):
    levels = cubic(initial, final, count)
    assert (len(levels), levels[-1]) == (count, final)
    steps = np.diff([initial, *levels])
    assert (np.sign(steps) == np.sign(final - initial)).all()
    assert (np.diff(np.abs(steps)) < 0).all()  # each smaller than the one before
    left = [(level - final) / (initial - final) for level in (initial, *levels)]
    np.testing.assert_allclose(np.cbrt(left), np.linspace(1, 0, count + 1), atol=1e-5)


def test_the_papers_tables(shared):
    facts = json.loads((shared / "melhubert/facts/full_size.json").read_text())["20ms"]
    assert list(study_schedules.PAPER_SPARSITIES) == [row["sparsity"] for row in facts["weight_schedule"]]
    assert list(study_schedules.PAPER_HEADS.events) == facts["head_prune_steps_at"]
    assert [12, *study_schedules.PAPER_HEADS_KEPT] == [row["heads_per_layer"] for row in facts["head_schedule"]]
    assert list(study_schedules.PAPER_ROWS.events) == facts["row_prune_steps_at"]
    assert [3072, *study_schedules.PAPER_ROWS_KEPT] == [row["ffn"] for row in facts["row_schedule"]]


def test_the_papers_calendars():
    """METHODS: 38 sparsities, 25,000 apart; heads end at 366,000, rows at 510,000."""
    waits = np.diff(study_schedules.PAPER_HEADS.events, prepend=0).tolist()
    assert waits == [1_000] + [25_000] * 5 + [40_000] * 5
    assert study_schedules.PAPER_WEIGHTS.events == tuple(25_000 + 25_000 * k for k in range(38))
    assert study_schedules.PAPER_WEIGHTS.gate == Gate(0.9998, 15_000, 0.001, 3)
    assert (study_schedules.PAPER_HEADS.last, study_schedules.PAPER_ROWS.last) == (366_000, 510_000)
    check(study_schedules.PAPER_WEIGHTS, study_schedules.PAPER_SPARSITIES)
    check(study_schedules.PAPER_HEADS, study_schedules.PAPER_HEADS_KEPT, rising=False)
    check(study_schedules.PAPER_ROWS, study_schedules.PAPER_ROWS_KEPT, rising=False)


GATED = Calendar((10, 30), 40, Gate(0.5, 8, 0.0), delay=15)


@pytest.mark.parametrize(
    ("calendar", "message"),
    [
        (Calendar((5, 15, 31), 30), "31, training ends at 30; train longer"),
        (Calendar((5, 15, 15), 30), "15 comes after 15"),
        (Calendar((5, 15, 10), 30), "10 comes after 15"),
        (Calendar((0, 15), 30), "0 comes after 0; updates count from 1"),
        (Calendar((-5,), 30), "-5 comes after 0"),
        (replace(GATED, gate=Gate(1.0, 8)), "smoothing 1 is not"),
        (replace(GATED, gate=Gate(math.nan, 8)), "smoothing nan is not"),
        (replace(GATED, gate=Gate(0.5, 8, math.nan)), "tolerance nan"),
        (replace(GATED, gate=Gate(0.5, 0)), "lookback 0"),
        (replace(GATED, gate=Gate(0.5, 8, first=0)), "first 0"),
        (replace(GATED, delay=8), "looks back 8 updates, but delay is 8; put a held event off by more"),
        (replace(GATED, delay=0), "delay is 0"),
        (replace(GATED, gate=Gate(0.5, 18), delay=20), "back 18 updates, which events at 10 and 30 .* back 17 or less"),
        (replace(GATED, events=(10, 13)), "events at 10 and 13 .* further apart"),
    ],
)
def test_calendars_that_cannot_work(calendar, message):
    with pytest.raises(InputError, match=message) as error:
        check(calendar)
    assert "\n" not in str(error.value)


def test_the_longest_look_back_that_is_allowed_takes_its_target():
    for drop_next in (False, True):
        gate = Gate(0.0, 17 - drop_next, 0.5, drop_next=drop_next)
        calendar = replace(GATED, gate=gate, delay=20)
        check(calendar)
        with pytest.raises(InputError, match=f"back {gate.lookback} or less"):
            check(replace(calendar, gate=replace(gate, lookback=gate.lookback + 1)))
        falling = [10.0 - step for step in range(1, 31)] + [-20.0] * 30
        assert events(follow(calendar, falling)) == [(10, "pruned"), (30, "held"), (50, "pruned")]


@pytest.mark.parametrize(
    ("levels", "rising", "message"),
    [
        ((0.2,), True, "1 sparsities for 2 events; give one for each"),
        ((0.2, 0.3, 0.4), True, "3 sparsities for 2 events"),
        ((9, 6, 3), False, "3 kept counts for 2 events"),
        ((0.5, 0.2), True, "0.2 follows 0.5; sparsities must rise"),
        ((0.5, 0.5), True, "0.5 follows 0.5"),
        ((6, 9), False, "9 follows 6; kept counts must fall"),
        ((6, 6), False, "6 follows 6"),
        ((0.5, 50), True, "50 is no sparsity from 0 to 1"),
        ((0.5, math.nan), True, "nan is no sparsity"),
        ((2, -1), False, "-1 is no count to keep"),
    ],
)
def test_levels_that_cannot_work(levels, rising, message):
    with pytest.raises(InputError, match=message):
        check(Calendar((5, 15), 20), levels, rising=rising)


def test_a_state_of_another_run_is_refused():
    with pytest.raises(InputError, match="update 9: the next event was due after update 5"):
        update(Calendar((5, 15), 20), Progress(), 9)


def test_an_event_may_follow_the_last_update():
    calendar = Calendar((5, 20), 20)
    check(calendar, (0.2, 0.5))
    assert events(follow(calendar, [None])) == [(5, "pruned"), (20, "pruned")]
    check(Calendar((), 20), ())
    assert events(follow(Calendar((), 20), [None])) == []
