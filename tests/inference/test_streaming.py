"""What comes out of a stream is what the whole utterance gives, whatever the chunks; and no frame sees the future."""

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference import streaming
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import (
    AveragePooling,
    ConvolutionStack,
    FeedForward,
    Layer,
    LengthAdapter,
    Mamba,
    Mamba2,
    PositionalConvolution,
    Repeat,
    ScaledConvolution,
    Sinusoids,
    SummaryMixing,
    Waveform,
)
from jaxssl.models.mixers.summaries import FAR
from jaxssl.models.zoo import melhubert_mini_streaming
from tests.archs import (
    ARCHS,
    CONVS,
    LARGE,
    LIMITED,
    MAMBA,
    MAMBA2,
    MEL,
    REUSING,
    STUDENT,
    SUMMARY,
    THIN,
    WAVLM,
    forward,
    noise,
    transformer_layer,
    weights,
)

NEAR = transformer_layer(4, 24, left=3, right=1)
PAST = transformer_layer(2, 7, left=5, right=0)
SCAN = Layer(Mamba(12, state=3, rank=2), FeedForward(8))
DUAL = Layer(Mamba2(3, 4, 5, groups=2, taps=3), FeedForward(8))
MEANS = tuple(
    Layer(SummaryMixing(4, 4, 3, 3, 5, window=window, norm=not window[1]), FeedForward(8))
    for window in ((FAR, 0), (3, 0), (FAR, 2), (2, 1))
)
STREAMING = {
    "post-norm": replace(MEL, layers=(NEAR, transformer_layer(0, 5), *MEANS[2:])),
    "student": replace(
        STUDENT, front=Waveform(THIN, norm="layer", feature_norm=False, scaled=True), layers=(NEAR, PAST)
    ),
    "dual": replace(MEL, layers=(DUAL,), position=PositionalConvolution(8, 4, causal=True), head=None),
    "causal": replace(
        MEL,
        layers=(PAST, SCAN, *MEANS[:2]),
        position=ConvolutionStack(2, 3, 4, causal=True),
        norm_first=True,
        head=None,
    ),
}
MORE = {
    "pre-norm": replace(MEL, layers=(NEAR, PAST), norm_first=True, position=PositionalConvolution(8, 4, causal=True)),
    "scaled": replace(MEL, layers=(SCAN, NEAR), position=ScaledConvolution(6, 4), head=None),
    "stack": replace(MEL, layers=(PAST,), position=ConvolutionStack(2, 4, 4), head=None),
    "sinusoid": replace(MEL, layers=(NEAR, SCAN), position=Sinusoids()),
    "waveform": replace(LARGE, front=Waveform(CONVS, norm="layer", bias=True), layers=(NEAR,), mask_embedding=False),
}
ALL = STREAMING | MORE
FRAMES = 21
slow = pytest.mark.slow  # a program is compiled for each size


def inputs_of(arch, batch=2):
    """Random inputs of 21 frames of the output, and a rest that makes none."""
    size = FRAMES * streaming.unit(arch)
    if arch.front.features:
        return noise(arch, 0, batch=batch, frames=size)
    return noise(arch, 0, batch=batch, frames=FRAMES * arch.time_reduction)  # 20 samples more


@lru_cache
def offline(name):
    """The model on utterances of two lengths, both at once."""
    arch = ALL[name]
    inputs = inputs_of(arch)
    lengths = np.array([inputs.shape[1], inputs.shape[1] * 3 // 5], np.int32)
    return inputs, lengths, forward(arch, weights(arch), inputs, lengths)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        *((name, 3) for name in STREAMING),
        *(pytest.param(name, frames, marks=slow) for name in STREAMING for frames in (1, 7, FRAMES + 4)),
        *(pytest.param(name, frames, marks=slow) for name in MORE for frames in (1, FRAMES + 4)),
    ],
)
def test_a_stream_gives_what_the_whole_utterance_gives(name, frames):
    arch = ALL[name]
    inputs, lengths, whole = offline(name)
    found = streaming.stream(arch, weights(arch), inputs, frames * streaming.unit(arch), lengths)
    assert found.last.shape == whole.last.shape
    assert found.valid.sum(1).tolist() == np.asarray(whole.lengths[-1]).tolist()
    for row, count in enumerate(np.asarray(whole.lengths[-1])):
        np.testing.assert_allclose(found.last[row, :count], whole.last[row, :count], atol=1e-5)
        if arch.head is not None:
            np.testing.assert_allclose(found.logits[row, :count], whole.logits[row, :count], atol=1e-5)


@slow
@pytest.mark.parametrize(("name", "frames"), [("post-norm", 5), ("pre-norm", 5), ("scaled", 1)])
def test_a_prepared_model_streams_too(name, frames):
    """Its positional kernel is a transform, its maps and scans are our kernels' where there is a compiler."""
    arch, params = prepared(ALL[name], weights(ALL[name]))
    inputs, lengths, whole = offline(name)
    found = streaming.stream(arch, params, inputs, frames * streaming.unit(arch), lengths)
    for row, count in enumerate(np.asarray(whole.lengths[-1])):
        np.testing.assert_allclose(found.last[row, :count], whole.last[row, :count], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["pre-norm", *(pytest.param(name, marks=slow) for name in ("causal", "post-norm", "student", "waveform"))]
)
def test_no_frame_hears_what_is_further_than_its_lookahead(name):
    """And the one before that is heard, so that no less would do."""
    arch, params = ALL[name], weights(ALL[name])
    inputs = inputs_of(arch, batch=1)
    rate, at = arch.front.rate, 8
    frame = jax.jit(jax.grad(lambda x: jnp.sin(forward(arch, params, x).last[0, at]).sum()))(inputs)[0]
    heard = np.flatnonzero(np.asarray(frame).reshape(len(frame), -1).any(1))
    unit, told = streaming.unit(arch), streaming.lookahead(arch)
    window = arch.front.samples[1] - arch.front.samples[0] if arch.front.features else 0  # of the last log-Mel frame
    beyond = round((told.ms / 1e3 - window / 16_000) * rate)
    assert heard.max() == (at + 1) * unit - 1 + beyond


def test_lookahead_is_told_in_frames_and_milliseconds():
    causal, student = streaming.lookahead(STREAMING["causal"]), streaming.lookahead(STREAMING["student"])
    assert causal == streaming.Lookahead(1, 15.0)  # the last window of 25 ms of a frame that stands for 20
    assert student.ms == pytest.approx((THIN_FIELD - 40 + (3 + 2) * 40) / 16)
    streaming.start(melhubert_mini_streaming())  # a preset to train
    assert streaming.lookahead(melhubert_mini_streaming()).ms == 6 * 40 + 15
    assert streaming.lookahead(MORE["waveform"]).ms == pytest.approx((80 - 40 + (3 + 1) * 40) / 16, abs=3)


THIN_FIELD = Waveform(THIN).field


ALL_OF_IT = np.array([3, 3], np.int32)


def test_a_row_is_given_to_a_new_stream(key):
    """What it held before is not heard."""
    arch, params = STREAMING["post-norm"], weights(STREAMING["post-norm"])
    x = noise(arch, key, frames=3)
    used, _ = streaming.step(arch, params, streaming.start(arch, 2), x, ALL_OF_IT)
    mixed = jax.tree.map(lambda old, new: jnp.stack([old[0], new[1]]), used, streaming.start(arch, 2))
    _, again = streaming.step(arch, params, mixed, x, ALL_OF_IT)
    _, first = streaming.step(arch, params, streaming.start(arch, 2), x, ALL_OF_IT)
    np.testing.assert_array_equal(again.last[1], first.last[1])
    assert np.abs(again.last[0] - first.last[0]).max() > 0.01


@pytest.mark.parametrize(
    "part",
    [PositionalConvolution(8, 4), PositionalConvolution(5, 2), ScaledConvolution(6, 4), ConvolutionStack(1, 4, 4)],
    ids=lambda part: f"{part.kind}-{part.kernel}",
)
def test_positions_of_the_past_hear_what_both_sides_hear_of_an_utterance_that_ends_there(part, key):
    arch = replace(MEL, layers=(transformer_layer(0, 5),), position=part, head=None)  # no frame hears another there
    past, params = streaming.causal(arch, weights(arch))
    assert past.position == replace(part, causal=True)
    assert streaming.delay(past) == 0 < streaming.delay(arch)
    x = noise(arch, key, batch=1, frames=9)
    whole = forward(past, params, x).last
    for end in (1, 4, 9):
        np.testing.assert_allclose(forward(arch, weights(arch), x[:, :end]).last[:, -1], whole[:, end - 1], atol=1e-5)
    assert streaming.causal(past, params)[1] is params


def test_sinusoids_are_of_the_past_as_they_are():
    arch, params = MORE["sinusoid"], weights(MORE["sinusoid"])
    found, same = streaming.causal(arch, params)
    assert found == arch
    assert same is params


def test_limited_context_is_given_to_all_attention():
    arch = streaming.limited(MEL, left=3, right=1)
    assert {layer.attention.context for layer in arch.layers} == {(3, 1)}
    assert streaming.delay(arch) == 3 + 3
    with pytest.raises(InputError, match="layers/0: a context of -1 and 1 frames"):
        streaming.limited(MEL, left=-1, right=1)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (MEL, "layers/0: attention sees all frames before its own; give it left and right"),
        (LIMITED, "layers/1: attention sees all frames before"),
        (replace(REUSING, layers=(replace(REUSING.layers[0], mixer=PAST.mixer), *REUSING.layers[1:])), "layers/1: reu"),
        (
            replace(MEL, layers=(transformer_layer(4, 24, left=2**31 - 1, right=0),)),
            "would hold 2147483647 frames; give",
        ),
        (WAVLM, "layers/0: gated attention"),
        (SUMMARY, "layers/0: SummaryMixing takes the mean of all frames; give it a window"),
        (MAMBA, "front: a group norm over time"),
        (replace(MEL, layers=MAMBA.layers), "layers/0: Mamba of directions inner"),
        (MAMBA2, "layers/0: Mamba-2 of directions inner"),
        (LARGE, "front: normalize needs the whole utterance"),
        (ARCHS["whisper"], "front: Whisper's log-Mel"),
        (replace(STREAMING["causal"], shortening=AveragePooling(2), upsampling=Repeat()), "sequences are made shorter"),
        (replace(STREAMING["causal"], length_adapter=LengthAdapter(10)), "length_adapter: joins frames"),
    ],
)
def test_what_cannot_stream_is_refused(arch, message):
    with pytest.raises(InputError, match=message):
        streaming.start(arch)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 60), r"a chunk of 60 inputs is no multiple of 80, which make a frame; give 80"),
        ((1, 2, 3), "takes \\(batch, samples\\)"),
    ],
)
def test_a_chunk_of_another_form_is_refused(shape, message):
    arch = STREAMING["student"]
    with pytest.raises(InputError, match=message):
        streaming.step(arch, weights(arch), streaming.start(arch), np.zeros(shape, np.float32))


def test_chunks_of_no_frame_and_no_streams_are_refused():
    arch = STREAMING["student"]
    with pytest.raises(InputError, match="chunks of 60 inputs; give a multiple of 80"):
        list(streaming.chunks(arch, np.zeros((1, 100), np.float32), 60))
    with pytest.raises(InputError, match="0 streams; give 1 or more"):
        streaming.start(arch, 0)
