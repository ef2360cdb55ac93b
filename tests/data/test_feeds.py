"""Corpora as models read them: what the study's own loader made, and labels at the right rate."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.arrays import Slices
from jaxssl.data.audio import read
from jaxssl.data.batches import Loader, validation
from jaxssl.data.feeds import MelCorpus, WaveCorpus
from jaxssl.data.logmel import Stats
from jaxssl.data.manifest import Manifest, Utterance
from jaxssl.data.masking import HUBERT, MELHUBERT_20MS
from jaxssl.data.prepared import Labels, Prepared
from jaxssl.data.study import read_study

FRAMES = np.array([31, 40, 57])


def slices(lengths, make):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Slices(make(int(offsets[-1])), offsets)


def labels(lengths, period=10):
    return Labels("toy", 1000, period, slices(lengths, lambda n: np.arange(n, dtype=np.int16)))


def prepared(frames=FRAMES):
    features = slices(frames, lambda n: np.random.default_rng(0).normal(3, 2, (n, 4)).astype(np.float16))
    stats = Stats(np.full(4, 3, np.float32), np.full(4, 2, np.float32))
    manifest = Manifest(tuple(Utterance(f"u{i}", f"{i}.wav", 400 + 160 * (int(n) - 1)) for i, n in enumerate(frames)))
    return Prepared(manifest, stats, frames, False, features, {})


def test_batches_of_the_study(shared):
    """The same files in the study's own batches: features, labels, padding and lengths agree."""
    folder = shared / "melhubert" / "mini"
    study = read_study(folder / "mini-stg2-20ms.csv")
    corpus = MelCorpus(study, study.labels())
    stored = np.load(folder / "batches-20ms-bs2.npz")
    for k in range(4):
        (batch,) = validation(corpus, batch_size=2, spans=MELHUBERT_20MS, among=_named(study, stored[f"files_{k}"]))
        order = np.argsort([_place(study, name) for name in stored[f"files_{k}"]])
        for row, wanted in zip(np.argsort(batch.index), order, strict=True):
            n = int(stored[f"len_{k}"][wanted])
            assert batch.lengths[row] == n
            np.testing.assert_allclose(batch.inputs[row], stored[f"x_{k}"][wanted], atol=1e-6)
            np.testing.assert_array_equal(batch.labels[row, :n], stored[f"y_{k}"][wanted, :n])


def _place(study, name):
    stem = str(name).rsplit("/", 1)[-1].removesuffix(".npy")
    return [u.id for u in study.manifest.utterances].index(stem)


def _named(study, names):
    return [_place(study, name) for name in names]


@pytest.mark.parametrize("stack", [1, 2])
def test_frames_are_normalised_joined_and_labelled(stack):
    source = prepared()
    corpus = MelCorpus(source, labels(FRAMES), stack)
    assert corpus.item == (4 * stack,)
    assert corpus.lengths.tolist() == [-(-n // stack) for n in FRAMES]
    for i, n in enumerate(corpus.lengths):
        x = corpus.inputs(i)
        assert (x.shape, x.dtype) == ((n, 4 * stack), np.float32)
        flat = (np.asarray(source.features(i), np.float32) - 3) / 2
        np.testing.assert_allclose(x.reshape(-1, 4)[: FRAMES[i]], flat, atol=1e-6)
        assert not x.reshape(-1, 4)[FRAMES[i] :].any(), "a short last group ends with zeros, after normalisation"
        assert corpus.labels(i).tolist() == labels(FRAMES)[i][::stack].tolist()


def test_statistics_of_another_model():
    other = Stats(np.zeros(4, np.float32), np.ones(4, np.float32))
    source = prepared()
    np.testing.assert_allclose(
        MelCorpus(source, labels(FRAMES), 1, other).inputs(1), np.asarray(source.features(1), np.float32), atol=1e-6
    )


def test_labels_of_the_frames_own_rate():
    corpus = MelCorpus(prepared(), labels(-(-FRAMES // 2), 20), 2)
    assert [len(corpus.labels(i)) for i in range(3)] == corpus.lengths.tolist()


def test_speech_from_files(shared):
    folder = shared / "speech" / "librispeech_examples_3"
    files = sorted(folder.rglob("*.flac"))
    manifest = Manifest(tuple(Utterance(f.stem, f, len(read(f).samples)) for f in files))
    samples = np.array([u.samples for u in manifest.utterances])
    corpus = WaveCorpus(manifest, labels(1 + (samples - 400) // 160))
    settings = {"batch_size": 1, "crop": 32_000, "spans": HUBERT, "seed": 0}
    with Loader(corpus, **settings) as batches:
        assert batches.shapes() == ((1, 32_000),)
        for _, batch in zip(range(4), batches, strict=False):
            i = int(batch.index[0])
            own = batch.labels[0, 0] - corpus.targets[i][0]  # 10 ms labels count up, so they tell the window's start
            start = int(own) // 2 * 320
            np.testing.assert_array_equal(batch.inputs[0], read(files[i]).samples[start : start + 32_000])
            assert batch.labels.shape == (1, 99)
            assert (np.diff(batch.labels[0]) == 2).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MelCorpus(prepared(), labels(FRAMES // 2, 20), 1),
            "labels toy come each 20 ms and the model's frames",
        ),
        (lambda: MelCorpus(prepared(), labels(FRAMES - [0, 1, 2])), "u2: 28 labels (toy) for 29 frames of 20 ms"),
        (lambda: MelCorpus(prepared(), labels(FRAMES[:2])), "labels toy are of 2 utterances, the corpus has 3"),
        (lambda: WaveCorpus(prepared().manifest, labels(FRAMES + 2)), "u0: 17 labels (toy) for 16 frames of 20 ms"),
    ],
)
def test_labels_that_do_not_fit(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
