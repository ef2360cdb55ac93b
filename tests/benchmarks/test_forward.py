"""The benchmark's shapes and arithmetic, and the whole command on a tiny model."""

import csv
import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from benchmarks import forward, rivals, timed_forms
from experiments.reports import canvas
from jaxssl.inference.latency import Load, compile_forward
from jaxssl.models import cost
from jaxssl.models.arch import Rank, melhubert
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime.cli import main
from tests.archs import ARCHS, MAPS, MEL, transformer_layer, weights

BIG = replace(MEL, layers=(transformer_layer(4, 24),) * 4)


def test_compressed_forms_are_what_they_are_called():
    found = timed_forms.compressed(melhubert(20))
    assert list(found) == ["dense", "6 heads", "1024 units", "rank 128", "6 layers", "all of these"]
    sizes = {name: cost.parameters(arch) for name, arch in found.items()}
    assert sizes["dense"] == 90_231_424
    assert sizes["rank 128"] == 26_530_432  # the README's
    assert min(sizes, key=sizes.get) == "all of these"
    forms = dict.fromkeys(MAPS, Rank(128))
    assert found["all of these"].layers == (transformer_layer(6, 1024, head_dim=64, **forms),) * 6


def test_parts_add_up_to_the_whole():
    """Of a model whose time is the sum of its parts' the differences give the parts back."""
    parts = {"front end": 5.0, "positions": 2.0, "attention": 7.0, "feed-forward": 11.0, "norms": 1.0}
    whole = sum(parts.values())
    times = {
        "whole": whole,
        "no attention": whole - 7.0,
        "no feed-forward": whole - 11.0,
        "no blocks": 8.0,
        "no layers": 7.0,
        "no layers, no positions": 5.0,
    }
    assert timed_forms.parts(times) == parts
    assert set(timed_forms.without(BIG)) == set(times)
    assert all(layer.mixer.heads == layer.ffn.size == 0 for layer in timed_forms.without(BIG)["no blocks"].layers)


def test_every_system_computes_the_same(torch):
    """What is timed is one function: PyTorch's output is ours, on the benchmark's own samples."""
    model, load = rivals.Model(BIG, weights(BIG)), Load(0.2, 2)
    module = rivals._torch(model)
    with torch.inference_mode():
        theirs = module(torch.tensor(rivals.samples(load)))["last"].numpy()
    from jaxssl.inference.encode import encode

    ours = jax.jit(encode, static_argnums=0)(BIG, model.params, rivals.samples(load)).last
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for start in rivals.starts(model, ("ours", "pytorch")).values():
        start(load).run()
    assert compile_forward(BIG, model.params, load).load == load


def test_the_lead_is_over_the_fastest_of_the_others():
    times = {"ours": 10.0, "exported": 8.0, "pytorch": 20.0, "onnxruntime": 12.0}
    points = [{"model": "m", "load": "1 s × 1", "system": s, "milliseconds": t} for s, t in times.items()]
    points.append({"model": "m", "load": "5 s × 1", "system": "ours", "milliseconds": 9.0})
    assert forward.lead(points) == [
        {"model": "m", "load": "1 s × 1", "fastest": "onnxruntime", "milliseconds": 12.0, "ours": 1.2, "exported": 1.5}
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "exported", "int8"])
def test_what_onnx_runtime_times_is_the_model(torch, key, name):
    for need in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(need)
    arch = ARCHS["base"]
    rivals.starts(rivals.Model(arch, weights(arch)), (name,))[name](Load(0.2, 2)).run()


@pytest.mark.slow
def test_the_command_end_to_end(torch, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "small", lambda: BIG)
    words = ["--arch", "small", "--seconds", "0.2", "--batch", "1", "2", "--system", "pytorch", "--rounds", "1"]
    monkeypatch.setattr(forward, "SHORT", Load(0.2))
    monkeypatch.setattr(sys, "argv", ["forward", *words, "--out", str(tmp_path / "out")])
    main(forward.run, forward.Config, "", remember=False)
    told = json.loads((tmp_path / "out/forward.json").read_text())
    assert [(p["load"], p["system"]) for p in told["points"]] == [
        (load, system) for load in ("0.2 s × 1", "0.2 s × 2") for system in ("ours", "pytorch")
    ]
    for point in told["points"]:
        assert point["gmacs_per_s"] == pytest.approx(point["of_peak"] * told["peak"] / 1e9)
        assert point["ratio_low"] <= point["ratio"] <= point["ratio_high"]
    assert [form["form"] for form in told["forms"]] == [*timed_forms.compressed(BIG), "int8"]
    assert told["forms"][0]["promised"] == 1
    assert [part["system"] for part in told["parts"]] == ["ours", "pytorch"]
    with (tmp_path / "out/forward.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert (tmp_path / "out/forward.png").stat().st_size > 10_000
    assert "where the time goes" in capsys.readouterr().out


def test_impossible_requests_are_refused(tmp_path, monkeypatch, capsys):
    for words, message in ((["--rounds", "0"], "--rounds 0"), (["--arch", "nothing"], "nothing")):
        monkeypatch.setattr(sys, "argv", ["forward", *words, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as left:
            main(forward.run, forward.Config, "", remember=False)
        assert left.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_picture_names_every_load_and_cuts_no_point_off(tmp_path, monkeypatch):
    """A system that lacks a load leaves its place empty, and the fastest model is in the second panel."""
    loads, kept = [f"{seconds} s × 1" for seconds in range(1, 9)], []
    points = [
        {"model": model, "load": load, "system": system, "ratio": top, "ratio_low": top, "ratio_high": top}
        for model, top in (("slow", 1.5), ("fast", 4.0))
        for system in ("pytorch", "onnxruntime")
        for load in (loads if system == "pytorch" else loads[3:])
    ]
    monkeypatch.setattr(canvas, "save", lambda figure, path: kept.append(figure))
    forward.draw(tmp_path / "x.png", points, title="")
    for panel in kept[0].axes:
        assert [label.get_text() for label in panel.get_xticklabels()] == loads
        assert panel.get_ylim()[1] > 4.0
        places = [round(float(bar.lines[0].get_xdata()[0])) for bar in panel.containers]
        assert places == [0, 3]
