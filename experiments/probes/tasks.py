"""What probes are asked: utterances, who speaks, which phone is at which frame, and which of them train."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.data import padding
from jaxssl.data.audio import SAMPLE_RATE, read
from jaxssl.data.logmel import FFT, HIGH_HZ, LOW_HZ, SHIFT, WINDOW, logmel, windows
from jaxssl.data.manifest import Manifest, Utterance
from jaxssl.data.padding import Padded, pad
from jaxssl.models.arch import LogMel
from jaxssl.runtime.cli import follow

BUCKETS = tuple(seconds * SAMPLE_RATE for seconds in (2, 4, 8, 16))  # lengths that are compiled; longer is cropped
BATCH = 32 * SAMPLE_RATE  # samples of one batch, padding included
TRAINING, TESTING = 7, 3  # utterances of each speaker
TURNS = 3  # in which no utterance tests twice
HELD_OUT = 4  # every fourth sentence tests, where a corpus has no split of its own
PART = 3  # of what trains, a third as much tests


@dataclass(frozen=True)
class Corpus:
    """Speech and what is asked about it, one entry an utterance.

    Attributes:
        name: as reports print it.
        signals: samples.
        train: whether it trains; the others test.
        speakers: who speaks, as an integer.
        units: what the bootstrap resamples, as an integer.
        picks: frames that frame probes see.
        phones: their labels; none where phones are not asked.
        whole: whether speakers are asked of whole utterances, too.
    """

    name: str
    signals: tuple[np.ndarray, ...]
    train: np.ndarray
    speakers: np.ndarray
    units: np.ndarray
    picks: tuple[np.ndarray, ...]
    phones: tuple[np.ndarray, ...] = ()
    whole: bool = True


def sentences(manifest: Manifest, front: LogMel, *, limit: int, frames: int, seed: int) -> Corpus:
    """Choose utterances with phone times so that no sentence is on both sides, and labelled frames of them.

    Sentences of the split `valid` test; where there is no such split, every fourth sentence. Of either side a part is
    drawn by `seed`, of its labelled frames an even spread. The bootstrap resamples sentences, for the same words by
    other voices say little new.

    Args:
        manifest: the corpus.
        front: whose frames are meant.
        limit: utterances to train with at most; a third of it for testing.
        frames: frames to train with at most; a third of it for testing.
        seed: of the choice.

    Raises:
        InputError: fewer than two sentences with phone times.
    """
    known = [u for u in manifest.utterances if u.phones]
    tested = _tested(known)
    rng = np.random.default_rng(seed)
    chosen = [*_draw(known, tested, False, limit, rng), *_draw(known, tested, True, -(-limit // PART), rng)]
    train = np.array([_sentence(u) not in tested for u in chosen])
    signals = _read(chosen, "reading sentences")
    labels = _frame_labels(chosen, signals, front)
    picks = _spread([np.flatnonzero(row >= 0) for row in labels], train, frames)
    phones = tuple(row[pick] for row, pick in zip(labels, picks, strict=True))
    units = _integers([_sentence(u) for u in chosen])
    return Corpus("embedded corpus", signals, train, _integers([u.speaker for u in chosen]), units, picks, phones)


def by_speaker(manifest: Manifest, front: LogMel, *, frames: int, turn: int = 0) -> Corpus:
    """Take the first 7 utterances of each speaker to train and the next 3 to test; the bootstrap resamples utterances.

    Args:
        manifest: the corpus.
        front: whose frames are meant.
        frames: frames to train with at most; a third of it for testing.
        turn: of `TURNS`: each one tests another three of the ten, and the seven others train.

    Raises:
        InputError: an utterance without a speaker, a speaker with fewer than 10, or fewer than two speakers.
    """
    groups: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in manifest.utterances:
        groups[utterance.speaker].append(utterance)
    need = TRAINING + TESTING
    if few := [f"{speaker or 'unknown'} has {len(us)}" for speaker, us in groups.items() if len(us) < need]:
        raise InputError(f"--speakers: {need} utterances of each speaker are needed; {', '.join(few[:3])}")
    if "" in groups or len(groups) < 2:
        raise InputError(f"--speakers: {len(groups) - ('' in groups)} known speaker(s), 2 are needed; name them")
    chosen = [utterance for us in groups.values() for utterance in us[:need]]
    signals = _read(chosen, "reading speech")
    train = np.tile((np.arange(need) + turn * TESTING) % need < TRAINING, len(groups))
    picks = _spread([np.arange(front.frames(len(signal))) for signal in signals], train, frames)
    return Corpus("as recorded", signals, train, _integers([u.speaker for u in chosen]), np.arange(len(chosen)), picks)


def equalised(corpus: Corpus) -> Corpus:
    """Filter every utterance to one long-term spectrum, the mean of the training utterances' mean log-Mel.

    Where each speaker was recorded once, microphone and room tell the speaker as well as the voice does; a mean over
    frames, even random attention's, finds that. What stays is how the voice moves; it is asked frame by frame, for a
    mean over a whole utterance finds the last thousandth that a filter leaves.
    """
    spectra = np.stack([_mean_logmel(signal) for signal in corpus.signals])
    gains = (spectra[corpus.train].mean(0) - spectra) / 2  # of amplitudes, in nepers: energies are their squares
    signals = tuple(_filter(signal, gain) for signal, gain in zip(corpus.signals, gains, strict=True))
    return replace(corpus, name="equalised", signals=signals, whole=False)


def batches(signals: Sequence[np.ndarray], *, buckets: Sequence[int] = BUCKETS) -> Iterator[tuple[np.ndarray, Padded]]:
    """Pad signals to the lengths `buckets`, as many at once as 32 s hold (`jaxssl.data.padding.batches`)."""
    return padding.batches(signals, lengths=buckets, size=lambda longest: max(BATCH // longest, 1))


def _tested(utterances: Sequence[Utterance]) -> set[str]:
    listed = list(dict.fromkeys(_sentence(u) for u in utterances))
    if len(listed) < 2:
        raise InputError(f"{len(listed)} sentence(s) with phone times; a probe trains and tests on different ones")
    split = {_sentence(u) for u in utterances if u.split == "valid"}
    return split if 0 < len(split) < len(listed) else set(listed[HELD_OUT - 1 :: HELD_OUT] or listed[-1:])


def _draw(
    utterances: Sequence[Utterance], tested: set[str], side: bool, most: int, rng: np.random.Generator
) -> list[Utterance]:
    part = [u for u in utterances if (_sentence(u) in tested) == side]
    return [part[i] for i in np.sort(rng.permutation(len(part))[:most])]


def _sentence(utterance: Utterance) -> str:
    return utterance.text or utterance.id


def _read(utterances: Sequence[Utterance], what: str) -> tuple[np.ndarray, ...]:
    return tuple(read(u.path).samples[: BUCKETS[-1]] for u in follow(utterances, what, total=len(utterances)))


def _integers(names: Sequence[str]) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1]


def _frame_labels(utterances: Sequence[Utterance], signals: Sequence[np.ndarray], front: LogMel) -> list[np.ndarray]:
    """Number the phone at the centre of each frame; -1 where there is none."""
    numbers = {label: i for i, label in enumerate(sorted({p.label for u in utterances for p in u.phones}))}
    rows = []
    for utterance, signal in zip(utterances, signals, strict=True):
        first = np.arange(front.frames(len(signal))) * front.stack
        times = (SHIFT * (first + (front.stack - 1) / 2) + WINDOW / 2) / SAMPLE_RATE
        starts, ends = (np.array([getattr(p, at) for p in utterance.phones]) for at in ("start", "end"))
        place = np.searchsorted(starts, times, side="right") - 1
        labels = np.array([numbers[p.label] for p in utterance.phones])[place]
        rows.append(np.where((place >= 0) & (times < ends[place]), labels, -1))
    return rows


def _spread(frames: Sequence[np.ndarray], train: np.ndarray, most: int) -> tuple[np.ndarray, ...]:
    """Keep an even spread of at most `most` frames of the training utterances, and a third of it of the others."""
    kept = list(frames)
    for side, count in ((train, most), (~train, -(-most // PART))):
        rows = np.flatnonzero(side).tolist()
        ends = np.cumsum([len(frames[row]) for row in rows])
        chosen = np.zeros(ends[-1], bool)
        chosen[np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(int)] = True
        for row, part in zip(rows, np.split(chosen, ends[:-1]), strict=True):
            kept[row] = frames[row][part]
    return tuple(kept)


@jax.jit
def _logmel(samples: jax.Array) -> jax.Array:
    return logmel(samples)


def _mean_logmel(signal: np.ndarray) -> np.ndarray:
    longest = next(longest for longest in BUCKETS if len(signal) <= longest)
    samples, _ = pad([signal], to=longest)
    return np.asarray(_logmel(jnp.asarray(samples)))[0, : windows(len(signal))].mean(0)


def _filter(signal: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Multiply the spectrum by exp(gain), `gain: (bins,)` at the Mel bins' centres, straight in Mel between them."""
    size = len(signal) + 2 * FFT  # room for the filter to ring out instead of coming round to the start
    low, high = np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700)
    centres = np.linspace(low, high, len(gain) + 2)[1:-1]
    curve = np.interp(np.log1p(np.fft.rfftfreq(size, 1 / SAMPLE_RATE) / 700), centres, gain)
    return np.fft.irfft(np.fft.rfft(signal, size) * np.exp(curve), size)[: len(signal)].astype(np.float32)
