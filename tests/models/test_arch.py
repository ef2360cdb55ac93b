"""An arch goes through JSON unchanged, and what is no arch is refused."""

import json

import pytest

from compress.errors import InputError
from jaxssl.models.arch import from_json, to_json
from jaxssl.models.zoo import PRESETS
from tests.archs import ARCHS


@pytest.mark.parametrize("arch", [*ARCHS.values(), *(make() for make in PRESETS.values())])
def test_json_keeps_an_arch(arch):
    assert from_json(json.loads(json.dumps(to_json(arch)))) == arch


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
