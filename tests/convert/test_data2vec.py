"""data2vec as fairseq wrote it gives fairseq's numbers, and leaves its teacher behind."""

import pytest

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.arch import ConvolutionStack
from tests.archs import forward
from tests.convert import files
from tests.golden import meets, recorded, together, utterances

ATOL = 1e-4


@pytest.fixture(scope="module")
def converted(shared):
    return read(shared / "encoders/data2vec_fairseq/data2vec_fairseq.pt")


@pytest.fixture(scope="module")
def golden(shared):
    return recorded(shared / "encoders/data2vec_fairseq")


@pytest.fixture(scope="module")
def waves(shared):
    return utterances(shared)


def test_what_it_is(converted):
    assert converted.kind == "fairseq data2vec"
    assert converted.arch.position == ConvolutionStack(5, 19, 16)
    assert (converted.arch.front.norm, converted.arch.front.normalize, converted.arch.norm_first) == (
        *("layer", True),
        False,
    )
    assert converted.left_behind == ("final_proj.weight", "final_proj.bias")
    assert "_ema" in converted.notes[0]


def test_alone(converted, golden, waves):
    ours = forward(converted.arch, converted.params, waves[1][None])
    found = {"projected": ours.features, "layer_1": ours.hidden[1], "last": ours.last}
    meets({f"single_1_{name}": array for name, array in found.items()}, golden, atol=ATOL)


def test_a_padded_batch(converted, golden, waves):
    """fairseq counts 76 frames here; the padded ones leak through the stack, as in transformers."""
    padded, lengths = together(waves)
    ours = forward(converted.arch, converted.params, padded, lengths, padding="fairseq")
    valid = ~golden["batch_frame_padding_mask"]
    assert ours.lengths[-1].tolist() == valid.sum(1).tolist()
    found = {f"batch_layer_{i}": hidden for i, hidden in enumerate(ours.hidden)} | {"batch_last": ours.last}
    meets(found, golden, atol=ATOL, lengths=ours.lengths[-1])


def stack_shapes(taps=4, depth=2):
    shapes = {name: shape for name, shape in files.encoder_shapes().items() if "pos_conv" not in name}
    for i in range(depth):
        shapes[f"encoder.pos_conv.{i}.0.weight"] = (files.WIDTH, files.WIDTH // files.GROUPS, taps)
        shapes[f"encoder.pos_conv.{i}.0.bias"] = (files.WIDTH,)
    return shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_conv_depth": 5}, "pos_conv_depth is 5 in the configuration and 2 in the arrays"),
        ({"conv_pos": 12}, "conv_pos 12 over pos_conv_depth 2 makes kernels of 6, the arrays have 4"),
    ],
)
def test_kernels_that_are_not_the_configured_ones_are_refused(torch, tmp_path, change, message):
    model = files.MODEL | {"_name": "data2vec_audio", "pos_conv_depth": 2}
    state = {"cfg": {"model": model, "task": files.TASK}, "model": files.draw(torch, stack_shapes())}
    torch.save(state, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").arch.position == ConvolutionStack(2, 4, 4)
    state["cfg"]["model"] = model | change
    torch.save(state, tmp_path / "y.pt")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "y.pt")
