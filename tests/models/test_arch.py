"""An arch goes through JSON unchanged, and what is no arch is refused."""

import json
from dataclasses import replace

import pytest

from compress.errors import InputError
from jaxssl import pretrained
from jaxssl.models.arch import Blocks, Full
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.zoo import PRESETS
from tests.archs import ARCHS, LIMITED, MAPS, MEL, SOFTENED, transformer_layer


@pytest.mark.parametrize("arch", [*ARCHS.values(), SOFTENED, LIMITED, *(make() for make in PRESETS.values())])
def test_json_keeps_an_arch(arch):
    assert from_json(json.loads(json.dumps(to_json(arch)))) == arch


def before_versions(arch, *, lacking=()):
    """Describe an arch as the first versions did: heads, ffn, ranks, packed, reuse and int8 of each layer."""
    values = to_json(arch)
    del values["version"], values["relative"]
    position, project = values.pop("position"), values.pop("project")
    (head_dim,) = {layer["mixer"]["head_dim"] for layer in values["layers"]}
    values |= {"head_dim": head_dim, "position_kernel": position["kernel"], "position_groups": position["groups"]}
    values |= {"project": project is not None, "project_rank": (project or {}).get("rank")}
    values["layers"] = [_layer(layer) for layer in values["layers"]]
    for name in lacking:
        for record in (values, values["front"], *values["layers"]):
            record.pop(name, None)
    return values


def _layer(layer):
    forms = {name: form for part in layer.values() if part for name, form in part.items() if isinstance(form, dict)}
    return {
        "heads": layer["mixer"]["heads"],
        "ffn": layer["ffn"]["size"],
        "ranks": {name: form.get("rank") for name, form in forms.items()},
        "packed": {name: [form["size"], form["kept"]] if "kept" in form else None for name, form in forms.items()},
        "reuse": layer["mixer"]["reuse"],
        "int8": layer["mixer"]["v"].get("int8", False),
    }


PACKED = replace(MEL, layers=(transformer_layer(4, 24, q=Blocks(4, 2), fc2=Blocks(8, 1)), transformer_layer(4, 24)))
INT8 = replace(MEL, layers=(transformer_layer(4, 24, **dict.fromkeys(MAPS, Full(int8=True))),))


# There was nothing else.
OLD = [arch for arch in ARCHS.values() if arch.position.kind == "convolution" and arch.relative is None]
OLD = [arch for arch in OLD if all(layer.mixer.kind == "attention" for layer in arch.layers) and not arch.upsampling]


@pytest.mark.parametrize("arch", [*OLD, PACKED, INT8])
def test_what_was_written_before_there_were_versions_is_read(arch):
    assert from_json(json.loads(json.dumps(before_versions(arch)))) == arch


def test_what_early_versions_did_not_write_is_as_it_was_then():
    early = ("project", "time_reduction", "prepared", "feature_norm", "reuse", "packed", "int8", "project_rank")
    assert from_json(before_versions(ARCHS["base"], lacking=early)) == ARCHS["base"]
    assert from_json(before_versions(MEL, lacking=early)) == MEL


def test_the_first_model_of_the_package_was_written_before_there_were_versions():
    values = json.loads((pretrained.HERE / "melhubert-mini" / "arch.json").read_text())
    assert "version" not in values
    assert len(from_json(values).layers) == len(values["layers"])


def test_a_later_version_is_refused():
    with pytest.raises(InputError, match="version 3, this program reads up to 2; update"):
        from_json({**to_json(MEL), "version": 3})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("norm_first",), "abc", "norm_first is 'abc', not of type bool"),
        (("dropout", "hidden"), "abc", "dropout/hidden is 'abc', not of type float"),
        (("layers",), ["x"], "layers/0 is 'x', not names and values"),
        (("layers", 0, "mixer", "kind"), "other", "layers/0/mixer.*'other'"),
        (("layers", 1, "ffn", "fc1"), None, "layers/1/ffn/fc1 is of kind None, none of 'full', 'rank', 'blocks'"),
        (("front", "stack"), 2.5, "front/stack is 2.5, not of type int"),
        (("front", "kind"), "video", "front is of kind 'video', none of"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path, value, message):
    values = json.loads(json.dumps(to_json(MEL)))
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(InputError, match=message):
        from_json(values)


@pytest.mark.parametrize("drop", ["width", "front", "layers", "head"])
def test_a_missing_field_is_named(drop):
    values = to_json(ARCHS["mel"])
    del values[drop]
    with pytest.raises(InputError, match=drop):
        from_json(values)


def test_an_unknown_field_is_named():
    with pytest.raises(InputError, match="colour"):
        from_json({**to_json(ARCHS["mel"]), "colour": "blue"})


def test_frames_count_what_the_convolutions_give():
    front = PRESETS["hubert-base"]().front
    assert front.frames(400) == 1
    assert front.frames(16000) == 49
    assert front.frames(399) == 0
    assert PRESETS["melhubert-20ms"]().front.frames(16000) == 49
    assert PRESETS["melhubert-10ms"]().front.frames(16000) == 98
