"""Students with a shape of their own: ARMHuBERT and FitHuBERT give, layer by layer, what their code computes."""

import re
import shutil

import jax
import numpy as np
import pytest
import yaml

from compress.errors import InputError
from jaxssl.convert import sources
from jaxssl.convert.conversion import read
from tests.archs import forward
from tests.golden import meets, recorded, together, utterances

ATOL = 1e-4
STUDENTS = ("armhubert", "fithubert_tr")


@pytest.fixture(scope="module")
def waves(shared):
    return utterances(shared)


@pytest.fixture(scope="module", params=STUDENTS)
def student(shared, request):
    folder = shared / "encoders" / request.param
    return folder / f"{request.param}.ckpt", read(folder / f"{request.param}.ckpt"), recorded(folder)


def layers(ours, start, golden):
    """Return our arrays that the golden file has, by its names."""
    found = {f"layer_{i}": hidden for i, hidden in enumerate(ours.hidden)} | {"projected": ours.features}
    return {f"{start}_{name}": array for name, array in found.items() if f"{start}_{name}" in golden}


def test_alone(student, waves):
    _, converted, golden = student
    found = layers(forward(converted.arch, converted.params, waves[1][None]), "single_1", golden)
    meets(found, golden, atol=ATOL)
    assert {"single_1_layer_1", f"single_1_layer_{len(converted.arch.layers)}"} <= found.keys()


def test_in_a_padded_batch(student, waves):
    """Where maps are reused its code mixes a batch's heads and utterances: the first layer alone is compared."""
    _, converted, golden = student
    ours = forward(converted.arch, converted.params, *together(waves), padding="transformers")
    found = layers(ours, "batch", golden)
    if converted.arch.layers[-1].mixer.reuse:
        found = {"batch_layer_1": found["batch_layer_1"]}
    features = {"batch_projected": found.pop("batch_projected")} if "batch_projected" in found else {}
    meets(found, golden, atol=ATOL, lengths=ours.lengths[-1])
    meets(features, golden, atol=ATOL, lengths=[124, 76])


def test_reused_maps_are_softened_as_its_code_does(shared):
    mixers = [layer.mixer for layer in read(shared / "encoders/armhubert/armhubert.ckpt").arch.layers]
    assert [(mixer.reuse, mixer.softened) for mixer in mixers] == [(False, True), (True, False)] * 2


def test_what_is_left_behind_of_fithubert_is_a_projection_of_its_last_layer(shared, waves):
    """Its code's `x` is a transposed convolution of the last layer, which is no part of ours."""
    path = shared / "encoders/fithubert_tr/fithubert_tr.ckpt"
    converted, tensors = read(path), sources.describe(path).tensors
    assert {name.split(".")[0] for name in converted.left_behind} == {"upsampler", "proj_head"}
    last = np.asarray(forward(converted.arch, converted.params, waves[1][None]).last)
    kernel, bias = (tensors[f"proj_head.1.upsampler.{name}"].read() for name in ("weight", "bias"))
    x = np.einsum("bti,ioj->btjo", last, kernel).reshape(1, -1, 64) + bias
    meets({"single_1_x": x}, np.load(path.parent / "golden.npz"), atol=ATOL)


@pytest.fixture
def alone(shared, tmp_path):
    """ARMHuBERT's checkpoint in a folder of its own, and its configuration."""
    shutil.copy(shared / "encoders/armhubert/armhubert.ckpt", tmp_path / "armhubert.ckpt")
    return tmp_path / "armhubert.ckpt", yaml.safe_load((shared / "encoders/armhubert/armhubert.yaml").read_text())


def written(path, values, **change):
    block = values["distiller"] | change
    path.write_text(yaml.safe_dump({**values, "distiller": block}))
    return path


@pytest.fixture
def changed(torch, alone):
    """Save ARMHuBERT's checkpoint with other arrays of its student."""
    path, values = alone

    def save(change, **settings):
        held = torch.load(path, weights_only=False)
        state, prefix = held["state_dict"], "student_model."
        student = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
        others = {name: each for name, each in state.items() if not name.startswith(prefix)}
        held["state_dict"] = others | {f"{prefix}{name}": each for name, each in change(student).items()}
        torch.save(held, path)
        written(path.with_suffix(".yaml"), values, **settings)
        return read(path)

    return save


def test_a_student_without_heads_is_starhuberts(shared, changed):
    found = changed(lambda student: {name: each for name, each in student.items() if not name.startswith("proj_head")})
    assert (found.kind, found.left_behind) == ("STaRHuBERT", ())
    whole = read(shared / "encoders/armhubert/armhubert.ckpt")
    assert found.arch == whole.arch
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)


def test_a_student_that_makes_all_its_maps(changed):
    """As MaskHuBERT, whose other arrays are ARMHuBERT's."""

    def with_maps(student):
        made = {name: each for name, each in student.items() if re.search(r"layers\.[02]\.self_attn\.[qk]_proj", name)}
        return student | {
            re.sub(r"\.([02])\.", lambda m: f".{int(m[1]) + 1}.", name): each for name, each in made.items()
        }

    mixers = [layer.mixer for layer in changed(with_maps, reuse_pattern="[True, True, True, True]").arch.layers]
    assert [(mixer.reuse, mixer.softened) for mixer in mixers] == [(False, False)] * 4


def test_without_its_configuration(alone, tmp_path):
    path, values = alone
    with pytest.raises(InputError, match=r"no \.yaml is beside it; copy armhubert\.yaml.* say .* OUT --config FILE"):
        read(path)
    (tmp_path / "elsewhere").mkdir()
    config = written(tmp_path / "elsewhere/any.yaml", values)
    assert f"configuration: distiller of {config}" in read(path, config=config).notes


def test_of_two_configurations_the_one_that_fits_is_taken(alone, tmp_path):
    path, values = alone
    written(tmp_path / "a.yaml", values, encoder_ffn_embed_dim=99)
    (tmp_path / "b.yaml").write_text("teacher: {}")
    written(tmp_path / "c.yaml", values)
    notes = "\n".join(read(path).notes)
    assert f"configuration: distiller of {tmp_path / 'c.yaml'}" in notes
    assert "not taken" in notes
    assert "encoder_ffn_embed_dim is 99 in the configuration and 112 in the arrays" in notes
    written(tmp_path / "d.yaml", values, encoder_attention_heads=8)
    with pytest.raises(
        InputError, match=r"c\.yaml and d\.yaml beside it both fit its arrays and differ; say .* --config"
    ):
        read(path)
    written(tmp_path / "armhubert.yaml", values, encoder_attention_heads=2)
    assert read(path).arch.layers[0].mixer.heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reuse_pattern": "[True, True, True, False]"}, r"reuse_pattern is \[True, True, True, False\], the layers"),
        ({"reuse_pattern": "__import__('os')"}, "reuse_pattern is __import__"),
        ({"enable_tr_layer": True}, "enable_tr_layer is True in the configuration and False in the arrays"),
        ({"crop_seq_to_multiple": 2}, "crop_seq_to_multiple is 2; what is supported: 1"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"encoder_layers": 3}, "encoder_layers is 3 in the configuration and 4 in the arrays"),
    ],
)
def test_what_its_configuration_cannot_be(alone, tmp_path, change, message):
    path, values = alone
    written(tmp_path / "armhubert.yaml", values, **change)
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not YAML"), ("- 1", "no 'distiller' block"), ("!!python/object:os.system {}", "not YAML")],
)
def test_what_is_no_configuration(alone, tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read(alone[0])


def test_a_configuration_is_not_ignored(shared, tmp_path):
    with pytest.raises(InputError, match="DPHuBERT has its configuration with it; leave out --config"):
        read(shared / "encoders/dphubert/dphubert.pth", config=tmp_path / "x.yaml")
