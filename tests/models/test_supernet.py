"""Subnets computed in the supernet's shapes are those that are cut out of it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models import supernet
from jaxssl.models.arch import ClusterHead, PositionalConvolution
from jaxssl.models.cost import parameters
from jaxssl.models.describe import describe
from jaxssl.models.supernet import Subnet, layers_kept, masked, sizes, sliced
from tests.archs import ARCHS, BASE, MEL, forward, noise, transformer_layer, weights
from tests.golden import meets

FILE = "encoders/lighthubert/lighthubert_tiny.pt"
MEL_NET = replace(MEL, layers=(transformer_layer(4, 40),) * 6, position=PositionalConvolution(8, 2), width=16)
WAVE = replace(BASE, layers=(transformer_layer(3, 32), transformer_layer(2, 24)), head=ClusterHead(5))
NETS = {
    "mel": (MEL_NET, Subnet(8, (1, 4, 2), (20, 3, 9))),
    "mel-deep": (MEL_NET, Subnet(12, (4, 3, 2, 1, 4), (30, 13, 12, 11, 29))),
    "narrow": (MEL_NET, Subnet(2, (1,) * 6, (5, 1, 2, 3, 4, 5))),
    "wave": (WAVE, Subnet(WAVE.width // 2, (2,), (9,))),
    "pre-norm": (replace(MEL_NET, norm_first=True), Subnet(10, (2,) * 4, (25, 2, 14, 11))),
}


@partial(jax.jit, static_argnums=0, static_argnames="stack")
def in_shapes(arch, params, chosen, inputs, lengths, stack="unroll"):
    return masked(arch, params, chosen, inputs, lengths, stack=stack)


@pytest.mark.parametrize("name", NETS)
def test_masked_is_sliced(name):
    arch, subnet = NETS[name]
    params, inputs = weights(arch), noise(arch, 0)
    lengths = np.array([inputs.shape[1], inputs.shape[1] * 2 // 3], np.int32)
    there = in_shapes(arch, params, sizes(arch, subnet), inputs, lengths)
    small, cut = sliced(arch, params, subnet)
    assert describe(small, cut) == small
    here, width = forward(small, cut, inputs, lengths), subnet.width
    scale = float(np.abs(here.last).max())
    np.testing.assert_allclose(there.last[..., :width], here.last, atol=1e-5 * scale)
    np.testing.assert_array_equal(there.last[..., width:], 0)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-5 * float(np.abs(here.logits).max()))


@pytest.mark.parametrize("name", ["mel", "pre-norm"])
def test_the_largest_subnet_is_the_supernet(name):
    arch, inputs = NETS[name][0], noise(NETS[name][0], 0)
    params, whole = weights(arch), supernet.largest(arch)
    there = in_shapes(arch, params, sizes(arch, whole), inputs, np.array([30, 20], np.int32), stack="scan")
    small, cut = sliced(arch, params, whole)
    assert small == arch
    for path, leaf in flatten(cut).items():
        np.testing.assert_allclose(leaf, flatten(params)[path], rtol=1e-6)
    np.testing.assert_allclose(there.last, forward(arch, params, inputs, np.array([30, 20], np.int32)).last, atol=1e-5)


def test_gradients_are_those_of_the_subnet_and_none_of_what_it_lacks():
    arch, subnet = NETS["mel"]
    params, inputs, chosen = weights(arch), noise(arch, 0), sizes(arch, subnet)
    small, cut = sliced(arch, params, subnet)
    there = jax.jit(jax.grad(lambda p: jnp.square(masked(arch, p, chosen, inputs, stack="scan").logits).mean()))(params)
    here = jax.jit(jax.grad(lambda p: jnp.square(forward(small, p, inputs, stack="scan").logits).mean()))(cut)
    mine, theirs = flatten(there), flatten(here)
    kept = layers_kept(3, 6)
    for path in ("project/kernel", "norm/scale", "head/project/kernel"):
        part = np.asarray(mine[path])[tuple(slice(0, n) for n in theirs[path].shape)]
        np.testing.assert_allclose(part, theirs[path], atol=1e-5 * np.abs(theirs[path]).max())
    q = np.asarray(mine[f"layers/{kept[1]}/attention/q/kernel"])
    np.testing.assert_allclose(q[:8], theirs["layers/1/attention/q/kernel"], atol=1e-6)
    assert np.abs(q[:8]).max() > 0
    np.testing.assert_array_equal(q[8:], 0)
    for layer in set(range(6)) - set(kept):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(there["layers"][str(layer)]))


def test_subnets_of_one_supernet_share_a_program():
    arch, subnet = NETS["mel"]
    params, inputs, lengths = weights(arch), noise(arch, 0), np.array([30, 30], np.int32)
    run = jax.jit(lambda p, c, x, n: masked(arch, p, c, x, n).last)
    for each in (subnet, NETS["narrow"][1], supernet.largest(arch)):
        run(params, sizes(arch, each), inputs, lengths)
    assert run._cache_size() == 1


@pytest.mark.parametrize("name", ["sub_a", "sub_b"])
def test_subnets_of_lighthubert_are_what_its_code_computes(shared, name):
    golden, inputs = np.load(shared / "encoders/lighthubert/golden.npz"), np.load(shared / "encoders/inputs.npz")
    whole = read(shared / FILE)
    named = read(shared / FILE, subnet=str(golden[f"{name}_subnet_json"]))
    heads = tuple(layer.attention.heads for layer in named.arch.layers)
    subnet = Subnet(named.arch.width, heads, tuple(layer.ffn.size for layer in named.arch.layers))
    arch, params = sliced(whole.arch, whole.params, subnet)
    assert arch == named.arch
    for path, leaf in flatten(params).items():
        np.testing.assert_allclose(leaf, flatten(named.params)[path], rtol=1e-6, err_msg=path)
    key = f"{name}_single_1_hidden_{len(heads)}"
    ours = in_shapes(whole.arch, whole.params, sizes(whole.arch, subnet), inputs["raw_1"][None], None, stack="scan")
    meets({key: ours.last[..., : subnet.width]}, golden, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "units", "count"), [(384, 1536, 26_879_744), (640, 2560, 66_897_664), (768, 3072, 94_377_728)]
)
def test_published_subnets_have_the_published_sizes(width, units, count):
    base = replace(
        ARCHS["base"],
        front=replace(BASE.front, norm="layer", normalize=True, convs=type(BASE.front)().convs),
        width=width,
        layers=(transformer_layer(width // 64, units, head_dim=64),) * 12,
        position=PositionalConvolution(128, 16),
        head=None,
    )
    # Its code leaves out the 128 gains of the positional kernel, and counts the supernet's whole mask embedding.
    assert parameters(base) - 128 - width + 768 == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Subnet(8, (1, 1), (8, 8)), "2 layers: subnets of this supernet have 3 to 6"),
        (Subnet(8, (1,) * 3, (8, 8)), "heads of 3 layers and units of 2"),
        (Subnet(7, (1,) * 3, (8,) * 3), "width 7: this supernet has multiples of 2 up to 16"),
        (Subnet(18, (1,) * 3, (8,) * 3), "width 18: .* up to 16"),
        (Subnet(8, (1, 5, 1), (8,) * 3), "5 heads in layer 1: at width 8 1 to 4 are there"),
        (Subnet(8, (1, 0, 1), (8,) * 3), "0 heads in layer 1"),
        (Subnet(8, (1,) * 3, (8, 8, 21)), "21 units in layer 2: at width 8 1 to 20 are there"),
    ],
)
def test_what_is_no_subnet_of_it_is_refused(change, message):
    with pytest.raises(InputError, match=message) as caught:
        sliced(MEL_NET, {}, change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["uneven", "reusing", "wavlm", "mamba", "conformer", "summary", "shortened", "sinusoid", "whisper"]
)
def test_models_without_such_subnets_are_refused(name):
    with pytest.raises(InputError, match="subnets"):
        supernet.check_supernet(ARCHS[name])
