"""Log-Mel against torchaudio's, statistics and stacking against the study's own inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.arrays import read_array
from jaxssl.data.audio import read
from jaxssl.data.demo import utterances
from jaxssl.data.logmel import Stats, collect, load_stats, logmel, normalize, stack, stats_bytes
from jaxssl.data.padding import pad
from jaxssl.models.arch import LogMel
from tests.golden import meets

energies = jax.jit(logmel)  # one program where `logmel` alone compiles one for each of its operations
UTTERANCES = ("100-121669-0000", "1001-134707-0000")


@pytest.fixture(scope="module")
def speech(shared):
    return {name: read(shared / f"melhubert/mini/{name}.flac").samples for name in UTTERANCES}


@pytest.fixture(scope="module")
def stats(shared):
    return load_stats(shared / "speech/librispeech_examples_3/libri-960-mean-std.npy")


@pytest.mark.parametrize("name", UTTERANCES)
def test_raw_energies_are_torchaudio_s(shared, speech, name):
    golden = np.load(shared / "melhubert/fbank/torchaudio_0.13.1.npz")
    meets({f"{name}|raw": energies(speech[name][None])[0]}, golden, atol=2e-4)  # measured 7e-5


def test_model_inputs_are_the_study_s(shared, speech, stats):
    """Batched and padded: normalised, stacked in pairs, an odd last frame with a zero partner."""
    golden = np.load(shared / "melhubert/forward/tiny20_libri960.npz")
    samples, lengths = pad(list(speech.values()))
    frames = 1 + (lengths - 400) // 160
    inputs, valid = jax.jit(lambda samples, frames: stack(normalize(logmel(samples), stats), frames))(samples, frames)
    assert valid is not None
    assert valid.tolist() == golden["mel_len"].tolist()
    assert inputs.shape == golden["mel_input"].shape
    assert valid.tolist() == LogMel(bins=40, stack=2).frames(lengths).tolist()
    meets({"mel_input": inputs}, golden, atol=1e-4)  # measured 1.5e-5; zeros behind row 0


def test_rows_do_not_hear_each_other():
    one, two = (np.asarray(s)[None, :40000] for s in utterances(2))
    np.testing.assert_allclose(energies(np.concatenate([one, two]))[:1], energies(one), atol=1e-3)


def test_padding_is_not_heard():
    """Whatever follows a row's own samples, its valid frames stay."""
    signal = utterances(1)[0][:20123]
    alone = energies(signal[None])[0]
    loud = np.concatenate([signal, np.ones(9999, np.float32)])
    both = energies(pad([loud, signal])[0])
    for row in both:
        np.testing.assert_allclose(row[: len(alone)], alone, atol=1e-3)


def test_a_large_offset_hides_no_quiet_frame():
    """One-bit noise on 0.3 full scale: in float32 the mean of such a frame is off by much of the noise."""
    noise = np.random.default_rng(0).integers(-1, 2, 8000) / 2**15
    signal = (noise + 0.3).astype(np.float32)
    exact = energies((signal.astype(np.float64) - 0.3).astype(np.float32)[None])
    np.testing.assert_allclose(energies(signal[None]), exact, atol=2e-3)


def test_jit_changes_nothing():
    signal = jnp.asarray(utterances(1)[0][:8000])[None]
    # float32 noise of a loud frame's FFT shows in its emptiest bin, e⁻¹⁶ below the fullest: 2e-4
    np.testing.assert_allclose(energies(signal), logmel(signal), atol=1e-3)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98)])
def test_no_frame_reaches_over_the_end(samples, frames):
    assert jax.eval_shape(logmel, jnp.ones((2, samples))).shape == (2, frames, 40)
    assert LogMel(stack=1).frames(samples) == frames


def test_a_constant_has_the_floor_s_energy():
    """The mean is removed from every frame, so nothing but the logarithm's floor is left."""
    np.testing.assert_allclose(
        energies(np.full((1, 800), 0.25, np.float32)), np.log(np.finfo(np.float32).eps), rtol=1e-6
    )


def test_stack_by_hand():
    features = jnp.arange(10.0).reshape(1, 5, 2)
    stacked, none = stack(features)
    assert none is None
    np.testing.assert_array_equal(stacked[0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]])
    stacked, lengths = stack(features, jnp.array([3]))
    np.testing.assert_array_equal(stacked[0], [[0, 1, 2, 3], [4, 5, 0, 0], [0, 0, 0, 0]])
    assert lengths is not None
    assert lengths.tolist() == [2]
    np.testing.assert_array_equal(stack(features, n=1)[0], features)


def test_stack_leaves_the_caller_s_array():
    features = np.ones((2, 5, 3), np.float32)
    stacked, _ = stack(jnp.asarray(features), jnp.array([2, 5]))
    assert stacked.shape == (2, 3, 6)
    assert (features == 1).all()


def test_collected_statistics_normalise(tmp_path):
    rng = np.random.default_rng(0)
    corpus = [rng.normal(3, 2, (n, 40)).astype(np.float32) for n in (50, 7, 200)]
    found = collect(corpus)
    whole = np.concatenate(corpus)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std, whole.std(0), rtol=1e-5)
    (tmp_path / "stats.npy").write_bytes(stats_bytes(found))
    read_back = load_stats(tmp_path / "stats.npy")
    np.testing.assert_array_equal(read_back.mean, found.mean)
    normal = np.asarray(normalize(jnp.asarray(whole)[None], read_back))
    np.testing.assert_allclose(normal.std((0, 1)), 1, rtol=1e-4)


def test_nothing_to_collect():
    with pytest.raises(InputError, match="no frames"):
        collect([])
    silence = np.random.default_rng(0).normal(size=(50, 4))
    silence[:, 2] = np.log(np.finfo(np.float32).eps)
    with pytest.raises(InputError, match=r"bins \[2\] never vary over 50 frames"):
        collect([silence])
    silence[0, 1] = np.nan
    with pytest.raises(InputError, match=r"bins \[1, 2\]"):
        collect([silence])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(40), r"shape \(2, bins\)"),
        (np.ones((3, 40)), r"shape \(2, bins\)"),
        (np.ones((2, 0)), r"shape \(2, bins\)"),
        (np.zeros((2, 40)), "40 of 40 deviations"),
        (np.full((2, 40), 1e-60), "40 of 40 deviations"),
        (np.full((2, 40), np.nan), "80 of 80 values"),
        (np.array([["a"], ["b"]]), "not a .npy file"),
        (np.array([{}, {}]), "not a .npy file"),
    ],
)
def test_bad_statistics_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "stats.npy", array)
    with pytest.raises(InputError, match=rf"stats\.npy: .*{reason}"):
        load_stats(tmp_path / "stats.npy")


def test_other_files_are_no_statistics(tmp_path):
    np.savez(tmp_path / "stats.npz", a=np.ones((2, 40)))
    (tmp_path / "notes.npy").write_text("mean and std")
    for name in ("stats.npz", "notes.npy", "gone.npy"):
        with pytest.raises(InputError, match=name):
            load_stats(tmp_path / name)


@pytest.mark.parametrize("shape", ["(2, 10**12)", "(2, 1000000000000)", "(-2, 40)", "(2, 1e9)", "(" * 500, "9" * 5000])
def test_headers_that_lie_are_refused(tmp_path, shape):
    """Before memory is taken for what they promise."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text
    (tmp_path / "stats.npy").write_bytes(head + bytes(320))
    for ask in (load_stats, read_array):
        with pytest.raises(InputError, match=r"stats\.npy"):
            ask(tmp_path / "stats.npy")


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"40 bins.*39"):
        normalize(jnp.zeros((1, 3, 39)), Stats(np.zeros(40, np.float32), np.ones(40, np.float32)))
    with pytest.raises(InputError, match="400"):
        logmel(jnp.zeros((1, 399)))
