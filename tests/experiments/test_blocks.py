"""Timing block-sparse feed-forward blocks from the command line."""

import csv
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from experiments import blocks
from jaxssl.runtime import cli

SMALL = {"width": 16, "hidden": 32, "seconds": 0.2, "batch": 2, "size": (4, 8), "rounds": 2}


def config(out, **words):
    return blocks.Config(out=out, **{**SMALL, **words})


def test_every_sparsity_and_size_is_timed_beside_dense(tmp_path, capsys):
    blocks.run(config(tmp_path, sparsity=(0.5, 0.9)))
    written = json.loads((tmp_path / "report.json").read_text())
    rows = written["points"]
    assert [(row["name"], row["kept"]) for row in rows] == [
        ("dense", None),
        ("4 × 4", "2 + 4"),
        ("8 × 8", "1 + 2"),
        ("4 × 4", "1 + 1"),
        ("8 × 8", "1 + 1"),
    ]
    assert [row["sparsity"] for row in rows] == pytest.approx([0, 1 / 2, 1 / 2, 13 / 16, 5 / 8])
    assert rows[0]["speedup"] == 1
    assert rows[0]["error"] is None
    for row in rows[1:]:
        assert 0 <= row["error"] <= 1e-5
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert 0 < row["quartile_1_ms"] <= row["median_ms"] <= row["quartile_3_ms"]
    with (tmp_path / "blocks.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]
    assert written["machine"]["dtype"] == "float32"
    assert "kept per column" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_variant_is_the_dense_block_with_zeros(tmp_path, dtype):
    """Against NumPy in double precision, zeros put in by hand."""
    settings = config(tmp_path)
    dense = blocks.weights(settings)
    each = blocks.variant(dense, settings, 0.75, 8)
    for name, rows, columns, kept in (("fc1", 2, 4, 1), ("fc2", 4, 2, 1)):
        view = each.masked[name]["kernel"].reshape(rows, 8, columns, 8)
        filled = view.any((1, 3))
        assert filled.sum(0).tolist() == [kept] * columns
        original = dense[name]["kernel"].reshape(rows, 8, columns, 8)
        np.testing.assert_array_equal(view, original * filled[:, None, :, None])
    x = np.random.default_rng(1).normal(size=(2, 9, 16))
    y = x @ each.masked["fc1"]["kernel"].astype(np.float64) + each.masked["fc1"]["bias"]
    y = y * (1 + np.vectorize(math.erf)(y / 2**0.5)) / 2
    y = y @ each.masked["fc2"]["kernel"].astype(np.float64) + each.masked["fc2"]["bias"]
    found = blocks.feed_forward(jnp.asarray(x, dtype), each.packed, blocks.sparse_product)
    assert found.dtype == dtype
    assert np.linalg.norm(np.asarray(found, np.float64) - y) < (1e-6 if dtype == "float32" else 2e-2) * np.linalg.norm(
        y
    )


def test_bfloat16_is_timed_and_compared_in_float32(tmp_path):
    blocks.run(config(tmp_path, dtype="bfloat16", sparsity=(0.5,), size=(8,)))
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["machine"]["dtype"] == "bfloat16"
    assert written["points"][1]["error"] <= 1e-5


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_no_time_is_told_of_a_wrong_product(tmp_path, monkeypatch, factor):
    right = blocks.block_product
    monkeypatch.setattr(blocks, "block_product", lambda *arrays: right(*arrays) * factor)
    monkeypatch.setattr(blocks, "race", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(ArithmeticError, match="blocks of 4: the output is off by"):
        blocks.run(config(tmp_path))
    assert not (tmp_path / "report.json").exists()


def test_the_error_is_relative(tmp_path):
    each = blocks.variant(blocks.weights(config(tmp_path)), config(tmp_path), 0.5, 4)
    x = jax.random.normal(jax.random.key(0), (1, 9, 16))
    off = blocks.error(each, x, product=lambda x, params: blocks.sparse_product(x, params) * (1 + 3e-6))
    assert 2e-6 < off < 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"size": (5,)}, "--size 5: does not divide 16 and 32"),
        ({"size": (32,)}, "--size 32: does not divide 16 and 32"),
        ({"size": (0,)}, "--size 0"),
        ({"size": ()}, "name one or more"),
        ({"sparsity": ()}, "name one or more"),
        ({"sparsity": (1.0,)}, "--sparsity 1.0: give 0 to below 1"),
        ({"sparsity": (-0.1,)}, "--sparsity -0.1: give 0 to below 1"),
        ({"rounds": 0}, "--rounds 0"),
        ({"batch": 0}, "--batch 0"),
        ({"width": 0}, "--width 0"),
        ({"seconds": 0.0}, "--seconds 0.0: give 0.025 to 3600"),
    ],
)
def test_what_cannot_be_timed_is_refused(tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        blocks.run(config(tmp_path / "out", **words))
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_all(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["blocks", "--sparsity", "0.5", "0.9", "--size", "64", "--dtype", "bfloat16"])
    cli.main(seen.append, blocks.Config, "")
    assert seen == [blocks.Config(sparsity=(0.5, 0.9), size=(64,), dtype="bfloat16")]
    assert seen[0].load.seconds == 5
    assert [m.shape for m in seen[0].maps] == [(768, 3072), (3072, 768)]
