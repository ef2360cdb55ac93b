"""dtype="auto" is the quicker dtype that this device has instructions for, and costs little."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import latency
from jaxssl.inference.encode import encode_all
from jaxssl.inference.prepack import prepared
from jaxssl.inference.rounding import errors
from jaxssl.models import choice
from jaxssl.models.model import apply
from jaxssl.runtime import cli, native
from tests.archs import ARCHS, noise, weights


@pytest.mark.parametrize(
    ("backend", "ready", "by", "dtype", "why"),
    [
        ("cpu", True, "AMX", "bfloat16", "this processor has AMX"),
        ("cpu", True, "AVX512-BF16", "bfloat16", "this processor has AVX512-BF16"),
        ("cpu", True, "VNNI", "bfloat16", "this processor has VNNI"),
        ("cpu", True, "AVX2", "float32", "neither AMX nor AVX512-BF16 nor VNNI"),
        ("cpu", True, "float32", "float32", "neither AMX nor AVX512-BF16 nor VNNI"),
        ("cpu", False, "AMX", "float32", "a C++ compiler builds them"),
        ("gpu", False, "float32", "bfloat16", "a GPU multiplies it fastest"),
    ],
)
def test_it_is_what_the_device_has_instructions_for(monkeypatch, backend, ready, by, dtype, why):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(native, "ready", lambda: ready)
    monkeypatch.setattr(native, "tiers", lambda: {"bfloat16": by} if ready else {})
    monkeypatch.setattr(native, "fast_bfloat16", native.fast_bfloat16.__wrapped__)
    assert choice.quickest()[0] == dtype == choice.resolved("auto")
    assert why in choice.quickest()[1]
    assert choice.resolved("float32") == choice.resolved(np.float32) == jnp.float32


def test_models_that_run_in_it_are_those_of_that_dtype(monkeypatch, key):
    arch, params, x = ARCHS["mel"], weights(ARCHS["mel"]), noise(ARCHS["mel"], key)
    monkeypatch.setattr(choice, "quickest", lambda: ("bfloat16", "it is said so"))
    wanted = apply(*prepared(arch, params, dtype=jnp.bfloat16), x, dtype=jnp.bfloat16).last
    found = apply(*prepared(arch, params, dtype="auto"), x, dtype="auto").last
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wanted)
    ((_, heard),) = encode_all(arch, params, [np.asarray(x[0])], dtype="auto")
    assert heard.dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "most"), [("base", 1e-2), ("mel", 1e-2), ("uneven", 1e-2), ("large", 1.2e-2)])
def test_a_layer_in_bfloat16_is_within_a_hundredth_of_float32(name, most, key):
    """Of "large", whose norms come first, the last layer is 0.0103 from it with these random weights."""
    arch = ARCHS[name]
    assert max(errors(arch, weights(arch), noise(arch, key), dtype="bfloat16")) <= most


def test_the_command_says_which_it_took_why_and_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choice, "quickest", lambda: ("bfloat16", "bfloat16: this processor has it"))
    words = ["latency", "--dtype", "auto", "--seconds", "0.5", "--batch", "1", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    cli.main(latency.run, latency.Config, "", remember=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bfloat16:")]
    assert line.startswith("bfloat16: this processor has it; on 5 s of noise its layers are 0.")
    assert '"dtype": "bfloat16"' in (tmp_path / "report.json").read_text()
    assert line in (tmp_path / "report.json").read_text()


def test_of_training_it_is_what_training_takes():
    assert latency.Config(train=True, dtype="auto").precision == latency.Config(train=True).precision
