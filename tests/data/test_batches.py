"""Batches are functions of integers: of nothing that was read before, of no thread, of no host."""

import json
import threading
import time
from dataclasses import dataclass, field, fields

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.batches import Loader, validation
from jaxssl.data.masking import Spans

SPANS = Spans(0.7, 5)


@dataclass
class Toy:
    """Inputs that tell where they come from: 1000 · utterance + label number; labels are that number."""

    lengths: np.ndarray = field(default_factory=lambda: np.random.default_rng(5).integers(30, 200, 37))
    stride: int = 1
    reach: int = 1
    item: tuple[int, ...] = (3,)

    def inputs(self, i):
        at = 1000 * i + np.arange(self.lengths[i], dtype=np.float32) // self.stride
        return np.broadcast_to(at.reshape(-1, *[1] * len(self.item)), (len(at), *self.item))

    def labels(self, i):
        return 1000 * i + np.arange(1 + (self.lengths[i] - self.reach) // self.stride)


WAVE = Toy(np.random.default_rng(6).integers(3000, 12_000, 21), 320, 400, ())


def loader(corpus=None, **changes):
    settings = {"batch_size": 4, "crop": 120, "spans": SPANS, "seed": 7, "threads": 0, **changes}
    return Loader(corpus or Toy(), **settings)


def take(source, count):
    return [batch for _, batch in zip(range(count), source, strict=False)]


def equal(one, two):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        for name in (f.name for f in fields(a)):
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_batches_depend_on_integers_only():
    unbroken = take(loader(), 30)
    steps = loader().steps
    equal(unbroken, take(loader(), 30))
    backwards = loader()
    equal(unbroken[::-1], [backwards.batch(*divmod(k, steps)) for k in reversed(range(30))])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(threads):
    with loader(threads=threads, ahead=3) as batches:
        equal(take(batches, 25), take(loader(), 25))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    parts = [take(loader(host=h, hosts=hosts), 12) for h in range(hosts)]
    for whole, *some in zip(take(loader(), 12), *parts, strict=True):
        for name in (f.name for f in fields(whole)):
            np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in some]))


@pytest.mark.parametrize("stop", [0, 1, 8, 9, 10, 23])
@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_equals_an_unbroken_run(stop, threads):
    unbroken = take(loader(), 30)
    with loader(threads=threads) as first, loader(threads=threads) as second:
        take(first, stop)
        second.restore(json.loads(json.dumps(first.state())))
        assert second.state() == first.state()
        equal(unbroken[stop:], take(second, 30 - stop))


def test_going_back_while_reading_ahead():
    with loader(threads=2, ahead=8) as batches:
        start, first = batches.state(), take(batches, 11)
        batches.restore(start)
        equal(first, take(batches, 11))


def test_another_number_of_hosts_resumes():
    one, two = loader(), loader(host=1, hosts=2)
    take(one, 13)
    two.restore(one.state())
    np.testing.assert_array_equal(next(two).index, next(one).index[2:])


def test_hosts_that_come_and_go_draw_the_same_batches():
    """To the bit: begun by one, gone on with by four, then by two, in the middle of epochs."""
    alone, position = loader(), loader().state()
    for hosts, count in ((1, 13), (4, 11), (2, 17)):
        together = [loader(host=host, hosts=hosts) for host in range(hosts)]
        for each in together:
            each.restore(position)
        for whole in take(alone, count):
            parts = [next(each) for each in together]
            for name in ("inputs", "lengths", "labels", "mask", "index"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, name), strict=True)
        position = together[0].state()
        assert all(each.state() == position for each in together)


@pytest.mark.parametrize("state", [{}, [], None, {"epoch": "0", "step": 1}, {"epoch": 0}], ids=str)
def test_a_position_that_is_none_is_refused(state):
    with pytest.raises(InputError, match="saved without its epoch or step"):
        loader().restore(state)


@pytest.mark.parametrize("other", [{"seed": 8}, {"batch_size": 8}, {"crop": 100}, {"among": range(30)}, {"buckets": 1}])
def test_another_run_cannot_resume(other):
    with pytest.raises(InputError, match="data position was saved with"):
        loader(**other).restore(loader().state())


def test_every_utterance_once_an_epoch_but_for_the_rest():
    batches = loader()
    assert batches.steps == 37 // 4
    epochs = [np.concatenate([b.index for b in take(batches, batches.steps)]) for _ in range(6)]
    for seen in epochs:
        assert len(set(seen.tolist())) == 36
    assert len({tuple(seen) for seen in epochs}) == 6
    assert set(np.concatenate(epochs).tolist()) == {*range(37)}


def test_seeds_differ():
    assert any((a.index != b.index).any() for a, b in zip(take(loader(), 9), take(loader(seed=8), 9), strict=True))


@pytest.mark.parametrize("corpus", [Toy(), WAVE], ids=["frames", "samples"])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_shapes_are_those_announced(corpus, size):
    batches = loader(corpus, batch_size=size, crop=120 * corpus.stride)
    seen = {b.inputs.shape for b in take(batches, 3 * batches.steps)}
    assert seen == set(batches.shapes())
    assert len(batches.shapes()) <= 8
    checked = validation(corpus, batch_size=size, spans=SPANS)
    assert {b.inputs.shape for b in checked} == set(checked.shapes())


@pytest.mark.parametrize(("corpus", "crop"), [(Toy(), 40), (WAVE, 4000), (WAVE, 5555)], ids=["frames", "4000", "5555"])
def test_labels_stay_beside_their_inputs(corpus, crop):
    starts = set()
    for batch in take(loader(corpus, crop=crop), 20):
        assert batch.lengths.max() <= crop
        frames = 1 + (batch.lengths - corpus.reach) // corpus.stride
        assert (
            batch.labels.shape == batch.mask.shape == (4, 1 + (batch.inputs.shape[1] - corpus.reach) // corpus.stride)
        )
        for inputs, labels, n, i in zip(batch.inputs, batch.labels, frames, batch.index, strict=True):
            flat = inputs.reshape(len(inputs), -1)[:, 0]
            np.testing.assert_array_equal(labels[:n], flat[: n * corpus.stride : corpus.stride].astype(int))
            assert (labels[:n] // 1000 == i).all()
            starts.add(int(labels[0]) % 1000)
    assert len(starts) > 5, "windows begin anywhere"


def test_padding_is_zero_unlabelled_and_unmasked():
    for batch in take(loader(), 18):
        past = np.arange(batch.inputs.shape[1])[None, :] >= batch.lengths[:, None]
        assert not batch.inputs[past].any()
        assert (batch.labels[past] == -1).all()
        assert (batch.labels[~past] >= 0).all()
        assert not batch.mask[past].any()
        assert (batch.inputs.dtype, batch.lengths.dtype, batch.labels.dtype) == (np.float32, np.int32, np.int32)


def test_masks_change_from_epoch_to_epoch_and_cover_their_share():
    corpus = Toy(np.full(16, 100))
    batches = loader(corpus, crop=None)
    first, second = ({int(i): m for b in take(batches, 4) for i, m in zip(b.index, b.mask, strict=True)} for _ in "ab")
    assert all((first[i] != second[i]).any() for i in first)
    assert len({first[i].tobytes() for i in first}) == 16, "no two utterances share a mask"
    share = np.mean([b.mask.mean() for b in take(batches, 200)])
    assert share == pytest.approx(0.533, abs=0.01)


def test_short_ones_are_left_out():
    corpus = Toy()
    long = int((corpus.lengths >= 100).sum())
    told = loader(corpus, shortest=100, batch_size=1).summary()
    assert told.startswith(f"{long} utterances, {37 - long} more too short; an epoch is {long} batches of 1 in ")
    seen = {int(i) for b in take(loader(corpus, shortest=100, batch_size=1), 60) for i in b.index}
    assert seen == set(np.flatnonzero(corpus.lengths >= 100).tolist())
    chosen = {int(i) for b in take(loader(corpus, among=[3, 5, 8], batch_size=1), 9) for i in b.index}
    assert chosen == {3, 5, 8}


@pytest.mark.parametrize("corpus", [Toy(), WAVE], ids=["frames", "samples"])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_validation_sees_each_utterance_once(corpus, size):
    batches = list(validation(corpus, batch_size=size, spans=SPANS))
    index = np.concatenate([b.index for b in batches])
    assert sorted(index[index >= 0].tolist()) == [*range(len(corpus.lengths))]
    assert all(len(b.index) == size for b in batches)
    for batch in batches:
        filler = batch.index < 0
        assert (batch.lengths[filler] == corpus.reach).all()
        assert not batch.inputs[filler].any()
        assert not batch.mask[filler].any()
        assert (batch.labels[filler] == -1).all()


@pytest.mark.parametrize("changes", [{"batch_size": 9}, {"threads": 0}, {"buckets": 1}])
def test_validation_measures_the_same_whatever_the_batch(changes):
    def by_utterance(**settings):
        given = {"batch_size": 4, "crop": 100, "spans": SPANS, **settings}
        for b in validation(Toy(), **given):
            for k in np.flatnonzero(b.index >= 0):
                n = b.lengths[k]
                yield int(b.index[k]), b.labels[k, :n].tolist(), b.mask[k, :n].tolist(), b.inputs[k, :n].tolist()

    assert sorted(by_utterance()) == sorted(by_utterance(**changes))
    assert sorted(by_utterance()) != sorted(by_utterance(seed=1))


def test_validation_shares_with_hosts_and_repeats():
    whole = validation(Toy(), batch_size=16, spans=SPANS)
    equal(list(whole), list(whole))
    parts = [list(validation(Toy(), batch_size=16, spans=SPANS, host=h, hosts=4)) for h in range(4)]
    assert (parts[3][-1].index < 0).all(), "a host may get a share without any utterance"
    for a, *some in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(a.inputs, np.concatenate([p.inputs for p in some]))


def running():
    return {thread for thread in threading.enumerate() if "grain" in thread.name}


def gone(threads):
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


def test_threads_end_with_the_loader():
    before = running()
    with loader(threads=3) as batches:
        take(batches, 2)
        started = running() - before
        assert started
    assert gone(started)
    abandoned = iter(validation(Toy(), batch_size=4, spans=SPANS, threads=2))
    next(abandoned)
    started = running() - before
    abandoned.close()
    assert gone(started)


class Slow(Toy):
    """Waits for an interruption once."""

    interrupted = False

    def inputs(self, i):
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return super().inputs(i)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_interruption_closes_and_loses_nothing(threads):
    before = running()
    batches = loader(Slow(), threads=threads)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert gone(running() - before)
    equal(take(batches, 12), take(loader(), 12))
    batches.close()


def test_reading_is_ahead_but_not_far():
    read = []

    class Counting(Toy):
        def inputs(self, i):
            read.append(i)
            return super().inputs(i)

    with loader(Counting(), threads=2, ahead=3, batch_size=1) as batches:
        take(batches, 2)
        deadline = time.monotonic() + 5
        while len(read) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(read) >= 5
        assert len(read) <= 6


def test_a_damaged_utterance_is_named():
    class Damaged(Toy):
        def labels(self, i):
            return super().labels(i)[: -1 if i == 11 else None]

    corpus = Damaged()
    with (
        loader(corpus, threads=2) as batches,
        pytest.raises(InputError, match=f"utterance 11: .* {corpus.lengths[11] - 1} labels for {corpus.lengths[11]}"),
    ):
        take(batches, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "37 utterances make no batch of 64"),
        ({"batch_size": 0}, "batch of 0"),
        ({"batch_size": 6, "hosts": 4}, "batch of 6 is not shared evenly by 4 hosts"),
        ({"host": 2, "hosts": 2}, "host 2 of 2"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"crop": 20, "shortest": 30}, "crop of 20 is below the shortest utterance wanted, 30"),
        ({"shortest": 300, "crop": None}, "0 of 37 utterances have 300"),
        ({"among": [3, 40]}, "utterances 3 to 40 are wanted of a corpus of 37"),
        ({"threads": -1}, "-1 threads"),
        ({"buckets": 0}, "0 buckets"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError) as error:
        loader(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
