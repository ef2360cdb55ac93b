"""Models as DPHuBERT's own files: read again they are the same function, and their names are those of its code."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import to_dphubert
from jaxssl.convert.conversion import read
from jaxssl.models.arch import Rank, RelativeBias
from jaxssl.models.model import shapes
from tests.archs import ARCHS, BASE, LARGE, forward, gated_layer, noise, transformer_layer, weights
from tools.pytorch import formats

IRREGULAR = replace(
    BASE, layers=(transformer_layer(2, 24), transformer_layer(0, 7), transformer_layer(4, 0), transformer_layer(0, 0))
)


def there_and_back(torch, path):
    """Return a file's content, and what is written of the model that is read from it, under the same names."""
    theirs, ours = torch.load(path, weights_only=True), read(path)
    arrays, config = to_dphubert.state(ours.arch, ours.params)
    assert arrays.keys() == theirs["state_dict"].keys()
    assert config.keys() == theirs["config"].keys()
    return theirs, arrays, config


def test_its_own_file_comes_back_name_by_name(torch, shared):
    theirs, arrays, config = there_and_back(torch, shared / "encoders/dphubert/dphubert.pth")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, theirs["state_dict"][name], err_msg=name)
    differing = {name for name, value in config.items() if value != theirs["config"][name]}
    assert differing == {"encoder_num_heads", "encoder_ff_interm_features"}  # of what is gone
    assert config["encoder_num_heads"] == [3, 1, 4, 1]


def test_its_own_wavlm_comes_back_name_by_name(torch, shared):
    theirs, arrays, config = there_and_back(torch, shared / "encoders/dpwavlm/dpwavlm.pth")
    for name, array in arrays.items():
        wanted = theirs["state_dict"][name].numpy()
        if name.endswith("gru_rel_pos_const"):  # those of heads that are gone are nobody's
            remaining = theirs["config"]["encoder_remaining_heads"][int(name.split(".")[3])]
            array, wanted = array[:, remaining], wanted[:, remaining]
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    differing = {name for name, value in config.items() if value != theirs["config"][name]}
    assert differing == {"encoder_ff_interm_features"}  # of what is gone


def test_gated_attention_that_adds_its_bias_alone_stays(torch, tmp_path):
    """A layer without heads and with a bias keeps one head of zeros; positions need the first layer's attention."""
    layers = (gated_layer((), 24), gated_layer((1, 3), 7), gated_layer((), 5))
    arch = replace(LARGE, head=None, layers=layers, relative=RelativeBias(4, 12, 20))
    params, samples = weights(arch), noise(arch, 0)
    lengths = np.array([700, samples.shape[1]])
    found = formats.dphubert(formats.Given(arch, params, None), tmp_path)(samples, lengths)
    ours = forward(arch, params, samples, jnp.asarray(lengths))
    for row, count in enumerate(np.asarray(ours.lengths[-1])):
        np.testing.assert_allclose(found[row, :count], ours.last[row, :count], atol=1e-5)
    back = read(tmp_path / "model.pth").arch
    assert [layer.mixer.remaining for layer in back.layers] == [(0,), (1, 3), (0,)]
    params["layers"]["0"]["attention"]["out"]["bias"] *= 0
    with pytest.raises(InputError, match="its first layer has no attention, which holds the relative positions"):
        to_dphubert.state(arch, params)


@pytest.mark.parametrize("arch", [IRREGULAR, replace(LARGE, layers=IRREGULAR.layers)], ids=["post-norm", "pre-norm"])
def test_read_again_it_is_the_same_function(torch, tmp_path, arch):
    """Blocks without units whose bias is zero are gone; one with a bias stays, with a unit that does nothing else."""
    params, samples = weights(arch), noise(arch, 0)
    params["layers"]["1"]["attention"]["out"]["bias"] *= 0
    lengths = np.array([700, samples.shape[1]])
    run = formats.dphubert(formats.Given(arch, params, None), tmp_path)
    found = run(samples, lengths)
    ours = forward(arch, params, samples, jnp.asarray(lengths))
    for row, count in enumerate(np.asarray(ours.lengths[-1])):
        np.testing.assert_allclose(found[row, :count], ours.last[row, :count], atol=1e-5)
    back = read(tmp_path / "model.pth").arch.layers
    assert [(layer.mixer.heads, layer.ffn.size) for layer in back] == [(2, 24), (0, 7), (4, 1), (1, 1)]


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (ARCHS["mel"], "log-Mel frames"),
        (ARCHS["student"], "features have no norm"),
        (replace(BASE, layers=(transformer_layer(4, 24, fc1=Rank(2)),)), "maps are factorised"),
        (replace(BASE, layers=(transformer_layer(4, 24, key_bias=False),)), "keys have no bias"),
        (replace(BASE, layers=()), "no layers"),
        (
            replace(BASE, layers=(transformer_layer(4, 24), transformer_layer(2, 24, head_dim=8))),
            "heads differ in size",
        ),
        (replace(BASE, layers=(transformer_layer(4, 24), transformer_layer(4, 24, reuse=True))), "maps are reused"),
    ],
)
def test_what_its_code_cannot_be_is_told(arch, reason):
    with pytest.raises(InputError, match=f"DPHuBERT's code cannot be this model: .*{reason}; export it as torch"):
        to_dphubert.state(arch, shapes(arch))
