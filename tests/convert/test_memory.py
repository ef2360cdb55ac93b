"""A model is in memory once while it is converted, and what reads it back holds a portion of it."""

import ctypes
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from compress.address import flatten
from jaxssl.convert import to_huggingface
from jaxssl.convert.conversion import convert, read
from jaxssl.models import checkpoint
from tests.archs import LARGE, transformer_layer, weights

ARCH = replace(LARGE, width=256, layers=(transformer_layer(4, 8192, head_dim=64),) * 2, head=None)
MOST = Path("/proc/self/clear_refs")  # which sets the most memory that there ever was to what there is
SPARE = 30e6  # bytes: a portion three times, what libraries start


@pytest.fixture
def folder(tmp_path):
    config, features, tensors = to_huggingface.folder(ARCH, weights(ARCH))
    (tmp_path / "hf").mkdir()
    for name, values in (("config", config), ("preprocessor_config", features)):
        (tmp_path / "hf" / f"{name}.json").write_text(json.dumps(values))
    safetensors.numpy.save_file(tensors, tmp_path / "hf/model.safetensors")
    return tmp_path / "hf"


def memory(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(word))


@pytest.mark.skipif(not MOST.exists(), reason="only Linux tells")
def test_no_array_is_held_twice(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PORTION", 4 << 20)
    convert(folder, tmp_path / "warm")  # libraries' own memory
    ctypes.CDLL(None).malloc_trim(0)  # or what that one left behind would be taken first
    MOST.write_text("5")
    before, size = memory("VmRSS"), (folder / "model.safetensors").stat().st_size
    converted = convert(folder, tmp_path / "model")
    grown = memory("VmHWM") - before
    assert grown < 1.2 * size + SPARE, f"{grown / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB"
    apart = flatten(read(folder).params)
    for path, leaf in flatten(converted.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), apart[path])
        assert apart[path].flags.c_contiguous
        assert apart[path].flags.writeable
