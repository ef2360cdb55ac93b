"""Models whose attention is exchanged: as many parameters, the same frames, work that is linear in time."""

from dataclasses import replace
from functools import partial

import jax
import pytest

from compress.errors import InputError
from jaxssl.models.arch import SAMPLE_RATE, Attention, Layer
from jaxssl.models.cost import macs, parameters
from jaxssl.models.exchange import STEP, exchanged
from jaxssl.models.model import apply, shapes
from jaxssl.models.zoo import PRESETS
from tests.archs import BASE, MEL, REUSING, noise

KINDS = ("summary_mixing", "mamba")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["melhubert-tiny", "hubert-base"])
def test_no_other_size_is_nearer_in_parameters(preset, kind):
    arch = PRESETS[preset]()
    other = exchanged(arch, kind)
    assert all(layer.mixer.kind == kind for layer in other.layers)
    assert [layer.ffn for layer in other.layers] == [layer.ffn for layer in arch.layers]
    off = parameters(other) - parameters(arch)
    assert abs(off) < 0.02 * parameters(arch)
    for change in (-STEP, STEP):
        assert abs(parameters(_resized(other, kind, change)) - parameters(arch)) >= abs(off)


def _resized(arch, kind, change):
    """Return a model whose mixers are all larger by `change` channels or hidden units."""
    names = ("inner",) if kind == "mamba" else ("local", "summary", "local_hidden", "summary_hidden")

    def larger(mixer):
        return replace(mixer, **{name: getattr(mixer, name) + change for name in names})

    return replace(arch, layers=tuple(replace(layer, mixer=larger(layer.mixer)) for layer in arch.layers))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", [MEL, BASE], ids=["mel", "base"])
def test_its_frames_stay(arch, kind):
    other = exchanged(arch, kind)
    before, after = (jax.eval_shape(partial(apply, each), shapes(each), noise(each, 0)).last for each in (arch, other))
    assert before.shape == after.shape


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_its_work_is_linear_in_time(kind):
    arch = PRESETS["melhubert-mini"]()
    arch = exchanged(arch, kind) if kind else arch
    short, long = (macs(arch, SAMPLE_RATE * seconds).total / seconds for seconds in (16, 320))
    assert long / short == pytest.approx(1, rel=0.01) if kind else long / short > 5


def test_a_layer_that_differs_gets_a_size_of_its_own():
    arch = PRESETS["melhubert-mini"]()
    thin = Layer(Attention(2, 32), arch.layers[0].ffn)
    other = exchanged(replace(arch, layers=(thin, *arch.layers[1:])), "mamba")
    assert other.layers[0].mixer.inner < other.layers[1].mixer.inner == other.layers[5].mixer.inner


def test_what_has_no_attention_is_refused():
    with pytest.raises(InputError, match="layer 0 mixes frames by mamba; name layers of attention"):
        exchanged(PRESETS["mamba-hubert-base"](), "summary_mixing")


def test_layers_that_are_not_named_stay():
    other = exchanged(MEL, "mamba", (1,))
    assert other.layers[0] == MEL.layers[0]
    assert other.layers[1].mixer.kind == "mamba"
    assert exchanged(MEL, "attention") == MEL
    with pytest.raises(InputError, match=f"layer {len(MEL.layers)} is not there; the model has 0 to"):
        exchanged(MEL, "mamba", (len(MEL.layers),))
    with pytest.raises(InputError, match="layer 1 takes the attention maps of the layer below"):
        exchanged(REUSING, "mamba", (1,))
    with pytest.raises(InputError, match="layer 0 lends its attention maps"):
        exchanged(REUSING, "mamba", (0,))
