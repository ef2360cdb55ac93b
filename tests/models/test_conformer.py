"""Conformers against SpeechBrain's encoder, and against its formulas around SummaryMixing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert import to_dphubert, to_huggingface
from jaxssl.inference import streaming
from jaxssl.models import cost
from jaxssl.models.arch import (
    FULL,
    Arch,
    Attention,
    ConvolutionModule,
    FeedForward,
    Layer,
    LogMel,
    Macaron,
    Sinusoids,
    SummaryMixing,
)
from jaxssl.models.describe import describe
from jaxssl.models.model import apply, init, restored, shapes
from jaxssl.models.sites import axes
from tests.archs import BASE, CONFORMER, weights


def conformer(mixer, width, ffn):
    """One layer as SpeechBrain has it: Swish everywhere, 31 taps."""
    feed, macaron = FeedForward(ffn, activation="silu"), Macaron(ffn, activation="silu")
    layer = Layer(mixer, feed, macaron=macaron, convolution=ConvolutionModule(width))
    return Arch(LogMel(bins=width, stack=1), width, (layer,), norm_first=True, position=Sinusoids(), project=None)


def encoded(arch, layer, norm, x, valid=None):
    """A layer and the encoder's norm on `x: (batch, time, width)`; both outputs."""
    params = jax.tree.map(jnp.asarray, {"layers": {"0": layer}, "norm": norm})
    return _run(arch, params, jnp.asarray(x), None if valid is None else jnp.asarray(valid))


@partial(jax.jit, static_argnums=0)
def _run(arch, params, x, valid):
    model = restored(arch, params)
    y, _ = model.layers[0](x, valid, None)
    return y, model.norm(y)


@pytest.fixture(scope="module")
def speechbrain(shared):
    with np.load(shared / "encoders/conformer_speechbrain/regularMHA.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


PLACES = {
    "convolution_module.layer_norm": "convolution_norm",
    "convolution_module.conv": "convolution/conv",
    "convolution_module.after_conv.0": "convolution/norm",
    "ffn_module1.0": "macaron_norm",
    "ffn_module2.0": "ffn_norm",
    "norm1.norm": "attention_norm",
    "norm2.norm": "last_norm",
}
MAPS = {
    "convolution_module.after_conv.2": "convolution/out",
    "ffn_module1.1.ffn.0": "macaron/fc1",
    "ffn_module1.1.ffn.3": "macaron/fc2",
    "ffn_module2.1.ffn.0": "ffn/fc1",
    "ffn_module2.1.ffn.3": "ffn/fc2",
}


def tree(flat):
    """Paths to a tree."""
    found = {}
    for path, leaf in flat.items():
        at = found
        *parents, last = path.split("/")
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = leaf
    return found


def of_speechbrain(found):
    """Its weights by our names: the layer's, and those of the encoder's norm."""
    mine = {name.removeprefix("weights/layers.0."): each for name, each in found.items() if name.startswith("weights/")}
    flat = {}
    for theirs, place in PLACES.items():
        scale = "kernel" if place.endswith("conv") else "scale"
        weight = mine[f"{theirs}.weight"]
        flat[f"{place}/{scale}"] = weight.transpose(2, 1, 0) if weight.ndim == 3 else weight
        flat[f"{place}/bias"] = mine[f"{theirs}.bias"]
    for theirs, place in MAPS.items():
        flat |= {f"{place}/kernel": mine[f"{theirs}.weight"].T, f"{place}/bias": mine[f"{theirs}.bias"]}
    pointwise = "convolution_module.bottleneck.0"
    flat["convolution/pointwise/kernel"] = mine[f"{pointwise}.weight"].reshape(2, 48, 48).transpose(2, 1, 0)
    flat["convolution/pointwise/bias"] = mine[f"{pointwise}.bias"].reshape(2, 48).T
    for name, weight, bias in zip(
        "qkv",
        mine["mha_layer.att.in_proj_weight"].reshape(3, 48, 48),
        mine["mha_layer.att.in_proj_bias"].reshape(3, 4, 12),
        strict=True,
    ):
        flat |= {f"attention/{name}/kernel": weight.T.reshape(48, 4, 12), f"attention/{name}/bias": bias}
    flat["attention/out/kernel"] = mine["mha_layer.att.out_proj.weight"].T.reshape(4, 12, 48)
    flat["attention/out/bias"] = mine["mha_layer.att.out_proj.bias"]
    return tree(flat), {"scale": mine["weights/norm.norm.weight"], "bias": mine["weights/norm.norm.bias"]}


ATTENTION = conformer(Attention(4, 12), 48, 96)


def test_the_encoder_is_speechbrains(speechbrain):
    """Also of an utterance alone: theirs lets padding into its convolution, ours gives in a batch what it gives alone.

    Their last norm has an epsilon of 1e-6, ours 1e-5 as all others: less than the tolerance.
    """
    layer, norm = of_speechbrain(speechbrain)
    given = {path: leaf.shape for path, leaf in flatten({"layers": {"0": layer}, "norm": norm}).items()}
    assert given == {path: leaf.shape for path, leaf in flatten(shapes(ATTENTION)).items()}
    x, frames = speechbrain["x"], int(speechbrain["lengths"][1])
    valid = ~speechbrain["key_padding_mask"]
    y, last = encoded(ATTENTION, layer, norm, x, valid)
    np.testing.assert_allclose(y[0], speechbrain["hidden_1"][0], atol=1e-4)
    np.testing.assert_allclose(last[0], speechbrain["encoder_out"][0], atol=1e-4)
    np.testing.assert_allclose(last[1, :frames], speechbrain["row1_alone"][0], atol=1e-4)
    assert np.abs(speechbrain["encoder_out"][1, :frames] - speechbrain["row1_alone"][0]).max() > 0.1


@pytest.fixture(scope="module")
def cell(shared):
    with np.load(shared / "encoders/summarymixing/cell.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


LEAVES = (("kernel", "weight"), ("bias", "bias"), ("scale", "weight"))


def of_formulas(cell):
    """The weights of a Conformer around SummaryMixing by our names."""
    mine = {name.removeprefix("conformer/weights/"): each for name, each in cell.items()}
    flat = {}
    norms = {
        "ffn1.ln": "macaron_norm",
        "ffn2.ln": "ffn_norm",
        "ln1": "mixing_norm",
        "ln2": "last_norm",
        "conv.ln": "convolution_norm",
        "conv.ln_after": "convolution/norm",
    }
    for theirs, place in norms.items():
        flat |= {f"{place}/scale": mine[f"{theirs}.weight"], f"{place}/bias": mine[f"{theirs}.bias"]}
    maps = {"ffn1.w1": "macaron/fc1", "ffn1.w2": "macaron/fc2", "ffn2.w1": "ffn/fc1", "ffn2.w2": "ffn/fc2"}
    for theirs, place in (maps | {"conv.linear": "convolution/out"}).items():
        flat |= {f"{place}/kernel": mine[f"{theirs}.weight"], f"{place}/bias": mine[f"{theirs}.bias"]}
    flat["convolution/pointwise/kernel"] = mine["conv.pointwise.weight"].reshape(32, 2, 32).swapaxes(1, 2)
    flat["convolution/pointwise/bias"] = mine["conv.pointwise.bias"].reshape(2, 32).T
    flat["convolution/conv/kernel"] = mine["conv.depthwise.weight"][:, None]
    flat["convolution/conv/bias"] = mine["conv.depthwise.bias"]
    for name in ("local1", "local2", "summary1", "summary2"):
        flat |= {f"mixing/{name}/{ours}": cell[f"weights/{name}.{its}"] for ours, its in LEAVES[:2]}
    for name in ("local", "summary"):
        flat |= {f"mixing/{name}_norm/{ours}": cell[f"weights/ln_{name}.{its}"] for ours, its in LEAVES[1:]}
    for name, half in zip(("local", "summary"), np.split(cell["weights/merge.weight"], 2), strict=True):
        flat[f"mixing/merge_{name}/kernel"] = half.reshape(4, 8, 32).swapaxes(0, 1)
    flat["mixing/merge_summary/bias"] = cell["weights/merge.bias"]
    return tree(flat), {"scale": mine["final_ln.weight"], "bias": mine["final_ln.bias"]}


def test_a_conformer_of_summary_mixing_is_its_formulas(cell):
    """With the branches' norms, as its SSL recipe has them, and padding silent to the convolution, as ours is."""
    layer, norm = of_formulas(cell)
    arch = conformer(SummaryMixing(4, 8, 8, 8, 8, norm=True), 32, 64)
    for found, name in zip(
        encoded(arch, layer, norm, cell["x"], cell["mask"] > 0), ("layer_out", "encoder_out"), strict=True
    ):
        for row, frames in enumerate(cell["lengths"]):
            wanted = cell[f"conformer_mask_inside_conv/{name}"][row, :frames]
            np.testing.assert_allclose(found[row, :frames], wanted, atol=1e-4)


def test_macs_are_counted_by_hand():
    """Of 100 frames: two feed-forward blocks, the maps and taps of the convolution, attention."""
    frames, width = 100, 48
    samples = 400 + 160 * (frames - 1)
    found = cost.macs(ATTENTION, samples)
    assert found.ffn == frames * 4 * width * 96
    assert found.convolution == frames * (width * 2 * width + 31 * width + width * width)
    assert found.attention_maps == frames * 4 * width * width
    assert found.total == found.ffn + found.convolution + found.attention_maps + 2 * frames**2 * width


@pytest.mark.parametrize("mixer", [Attention(2, 32), SummaryMixing(4, 16, 16, 16, 16, norm=True)])
def test_macs_agree_with_xla(mixer):
    """Which adds elementwise operations, so ours is a lower bound that a wide model nearly reaches."""
    layer = replace(ATTENTION.layers[0], mixer=mixer, convolution=ConvolutionModule(64))
    arch = replace(ATTENTION, front=LogMel(40, 1), project=FULL, width=64, layers=(layer, layer))
    inputs = jax.ShapeDtypeStruct((1, 200, 40), jnp.float32)
    params = jax.eval_shape(lambda: weights(arch))
    compiled = jax.jit(lambda params, x: apply(arch, params, x).last).lower(params, inputs).compile()
    assert 1.0 <= compiled.cost_analysis()["flops"] / (2 * cost.macs(arch, 400 + 160 * 199).total) < 1.25


def test_a_unit_of_every_block_costs_what_it_saves():
    """Parameters and MACs of one unit less are the difference to the model without it."""
    whole, costs = cost.parameters(CONFORMER), cost.unit_costs(CONFORMER, "params")
    work, macs = cost.macs_per_second(CONFORMER).total, cost.unit_costs(CONFORMER, "macs")
    assert {name.split("/")[2] for name in costs} == {"mamba2", "ffn", "macaron", "convolution"}
    for axis in (axis for axis in axes(CONFORMER) if axis.name.split("/")[2] in ("macaron", "convolution")):
        _, index, place, name = axis.name.split("/")
        layer = CONFORMER.layers[int(index)]
        less = replace(layer, **{place: getattr(layer, place).resized(name, axis.size - 1)})
        layers = (*CONFORMER.layers[: int(index)], less, *CONFORMER.layers[int(index) + 1 :])
        smaller = replace(CONFORMER, layers=layers)
        assert costs[axis.name] == whole - cost.parameters(smaller)
        assert macs[axis.name] == pytest.approx(work - cost.macs_per_second(smaller).total)


def test_either_half_of_the_shell_stands_alone(key):
    """A convolution without a macaron block leaves the feed-forward block whole and adds no norm, and so read back."""
    layer = replace(CONFORMER.layers[0], macaron=None)
    arch = replace(CONFORMER, layers=(layer, replace(CONFORMER.layers[1], convolution=None)))
    params = jax.eval_shape(partial(init, arch, key))
    assert describe(replace(arch, layers=()), params) == arch
    assert "last_norm" not in params["layers"]["0"]
    assert "last_norm" in params["layers"]["1"]


def test_what_is_cut_stays_in_the_norm(key):
    part = ConvolutionModule(8)
    assert part.resized("channels", 5) == ConvolutionModule(5, normed=8)
    assert part.resized("channels", 5).resized("channels", 3) == ConvolutionModule(3, normed=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convolution": ConvolutionModule(-1)}, "a convolution of -1 channels"),
        ({"convolution": ConvolutionModule(4, 30)}, "layers/0: a convolution of 30 taps has no middle one"),
        ({"convolution": ConvolutionModule(4, 0)}, "layers/0: kernel is 0"),
        ({"convolution": ConvolutionModule(4, normed=3)}, "a norm over 3 of 4 channels"),
        ({"macaron": Macaron(-2)}, "-2 FFN units"),
    ],
)
def test_what_cannot_be_is_refused(changes, message, key):
    arch = replace(CONFORMER, layers=(replace(CONFORMER.layers[0], **changes),))
    with pytest.raises(InputError, match=message):
        init(arch, key)


def test_it_is_refused_where_it_cannot_go(key):
    """After sums of post-norm, into a stream, and into other programs' classes."""
    with pytest.raises(InputError, match="layers/0: a Conformer's blocks have their norms before them"):
        init(replace(CONFORMER, norm_first=False), key)
    alone = replace(CONFORMER, front=LogMel(5), layers=CONFORMER.layers[:1])
    limited = replace(alone.layers[0], mixer=Attention(4, 4, left=3, right=0))
    with pytest.raises(InputError, match="layers/0: a Conformer's convolution hears to both sides"):
        streaming.start(replace(alone, layers=(limited,)))
    shell = {"macaron": Macaron(9), "convolution": ConvolutionModule(10, 5)}
    arch = replace(BASE, layers=(replace(BASE.layers[0], **shell),) * 2, norm_first=True)
    for write in (to_dphubert.state, to_huggingface.folder):
        with pytest.raises(InputError, match="its layers are a Conformer's"):
            write(arch, weights(arch))
