"""The benchmark's shapes and arithmetic, and the whole command on a tiny model."""

import csv
import json
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from benchmarks import forward, leads, passes, rivals, timed_forms, turns
from experiments.reports import canvas
from jaxssl.inference.latency import Load
from jaxssl.models import cost
from jaxssl.models.arch import Rank, melhubert
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime.cli import main
from tests.archs import ARCHS, MAPS, MEL, transformer_layer, weights
from tests.benchmarks.test_about import ABOUT

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


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_system_computes_the_same(torch, dtype):
    """What is timed is one function: PyTorch's output is ours, on the benchmark's own samples."""
    load, params = Load(0.2, 2), weights(BIG)
    module = rivals.module(BIG, params)
    ran = []
    hooked = module.register_forward_hook(lambda _, __, out: ran.append(out["last"]))
    with torch.inference_mode():
        module(torch.tensor(rivals.samples(load)))
    from jaxssl.inference.encode import encode

    ours = jax.jit(encode, static_argnums=0)(BIG, params, rivals.samples(load)).last
    np.testing.assert_allclose(ours, ran[0].numpy(), atol=1e-4)
    hooked.remove()
    rivals.pytorch(module, "pytorch", dtype, logmel=True)(load).run()
    program = rivals.ours(BIG, params, dtype)(load)
    program.run()
    assert program.load == load


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile has many of its own
@pytest.mark.parametrize(
    ("system", "dtype"), [("autocast", "bfloat16"), ("pytorch", "bfloat16"), ("compiled", "float32")]
)
def test_pytorch_in_all_its_ways(torch, system, dtype):
    rivals.pytorch(rivals.module(BIG, weights(BIG)), system, dtype, logmel=True)(Load(0.2)).run()


def test_the_lead_is_over_the_fastest_of_the_others():
    times = {"ours": 10.0, "exported": 8.0, "pytorch": 20.0, "onnxruntime": 12.0, leads.REFERENCE: 9.0}
    place = {"model": "m", "dtype": "float32"}
    points = [place | {"load": "1 s × 1", "system": s, "milliseconds": t} for s, t in times.items()]
    points.append(place | {"load": "5 s × 1", "system": "ours", "milliseconds": 9.0})
    wanted = {"load": "1 s × 1", "fastest": "onnxruntime", "milliseconds": 12.0, "ours": 1.2, "exported": 1.5}
    assert leads.lead(points) == [place | wanted]


def test_systems_run_in_the_dtypes_that_they_know():
    config = forward.Config()
    assert forward.systems(config, "float32") == ["ours", "exported", "pytorch", "compiled", "onnxruntime", "openvino"]
    assert forward.systems(config, "bfloat16") == ["ours", "pytorch", "autocast", "compiled", "openvino"]
    assert forward.systems(config, "int8") == ["ours", "convolutions", "pytorch", "onnxruntime", "openvino"]
    assert forward.systems(replace(config, system=("autotuned",)), "bfloat16") == ["ours", "autotuned"]
    assert set(leads.NAMES) - {leads.REFERENCE} == set(rivals.FILES) - {"ours"}


def point(system, dtype, ratio, **more):
    row = {"model": "m", "dtype": dtype, "load": "1 s × 1", "system": system, "milliseconds": 33.44, "of_peak": 0.876}
    return row | {"ratio": ratio, "ratio_low": ratio and ratio - 0.1, "ratio_high": ratio and ratio + 0.1} | more


def test_the_page_is_ready_for_the_results():
    about = ABOUT | {"peaks": {"float32": {"XLA": 2.36e11}, "bfloat16": {"XLA": 4.5e11}}}
    points = [point("ours", "float32", 1.0), point("pytorch", "float32", 2.33), point("compiled", "float32", 2.0)]
    points += [point("ours", "float32", 1.0, load="5 s × 1"), point("openvino", "float32", None)]
    points += [point("ours", "bfloat16", 1.0), point(leads.REFERENCE, "bfloat16", 1.57)]
    forms = [
        {"model": "m", "dtype": "int8", "form": form, "kept": 0.925, "speedup": 1.85} for form in ("dense", "6 heads")
    ]
    text = leads.page({"about": about, "notes": ["x is left out: gone"], "points": points, "forms": forms})
    assert "- x is left out: gone" in text
    assert "- cpu: AMD EPYC, 2 threads; AVX2, AVX-512" in text
    assert (
        "| ours is faster by | m, 1 s × 1 | m, 5 s × 1 |\n|---|---|---|\n"
        "| over PyTorch | 2.33 (2.23–2.43) | – |\n| over torch.compile | 2.00 (1.90–2.10) | – |\n"
        "| ours, ms | 33.44 | 33.44 |\n| share of the peak (236 GMAC/s) | 88 % | 88 % |\n"
    ) in text
    assert "| over our float32 | 1.57 (1.47–1.67) |\n| ours, ms" in text
    assert text.endswith("| share of the promise kept | 6 heads |\n|---|---|\n| m, int8 | 0.93 (1.85) |\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "dtype"),
    [
        ("onnxruntime", "float32"),
        ("exported", "float32"),
        ("onnxruntime", "int8"),
        ("openvino", "bfloat16"),
        ("transformers", "bfloat16"),
    ],
)
def test_what_others_run_is_the_model(torch, tmp_path, system, dtype):
    for need in ("onnx", "onnxscript", "onnxruntime", "transformers", *["openvino"] * (system == "openvino")):
        pytest.importorskip(need)
    arch = ARCHS["base"]
    rivals.write(arch, weights(arch), rivals.FILES[system][dtype], tmp_path)
    rivals.start(system, dtype, tmp_path, logmel=False)(Load(0.2, 2)).run()


def test_a_turn_is_the_median_of_runs_that_others_do_not_disturb(monkeypatch):
    clock, ran = [0.0], []
    monkeypatch.setattr(passes.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(passes.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def run():
        ran.append(clock[0])
        clock[0] += 0.0625 if len(ran) != 5 else 0.5

    assert passes.timed(run, long=False) == 0.5  # four runs to settle, then one that takes long
    assert ran == [0, 0.0625, 0.125, 0.1875, 0.25]
    ran.clear()
    assert passes.timed(run, long=True) == 0.0625
    assert ran[0] == 1.0
    assert len(ran) == 3


@pytest.mark.slow
def test_the_command_end_to_end(torch, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "small", lambda: BIG)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    words = ["--arch", "small", "--seconds", "0.2", "--batch", "1", "2", "--system", "pytorch", "--rounds", "1"]
    words += ["--dtype", "float32", "int8"]
    monkeypatch.setattr(forward, "SHORT", Load(0.2))
    monkeypatch.setattr(sys, "argv", ["forward", *words, "--out", str(tmp_path / "out")])
    main(forward.run, forward.Config, "", remember=False)
    told = json.loads((tmp_path / "out/forward.json").read_text())
    assert [(p["dtype"], p["load"], p["system"]) for p in told["points"]] == [
        (dtype, load, system)
        for dtype, more in (("float32", ()), ("int8", (leads.REFERENCE,)))
        for load in ("0.2 s × 1", "0.2 s × 2")
        for system in ("ours", "pytorch", *more)
    ]
    for point in told["points"]:
        dtype = "float32" if point["system"] == leads.REFERENCE else point["dtype"]
        peak = max(told["about"]["peaks"][dtype].values())
        assert point["gmacs_per_s"] == pytest.approx(point["of_peak"] * peak / 1e9)
        assert point["ratio_low"] <= point["ratio"] <= point["ratio_high"]
    assert told["notes"] == []
    assert [(form["dtype"], form["form"]) for form in told["forms"]] == [
        (dtype, form) for dtype in ("float32", "int8") for form in timed_forms.compressed(BIG)
    ]
    assert told["forms"][0]["promised"] == 1
    assert [(part["dtype"], part["system"]) for part in told["parts"]] == [("float32", "ours"), ("float32", "pytorch")]
    with (tmp_path / "out/forward.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10
    assert (tmp_path / "out/forward.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "where the time goes" in said
    assert (tmp_path / "out/forward.md").read_text().splitlines()[0] in said


class Ending:
    """Stands for a process that cannot do what others can."""

    def __init__(self, _, system, dtype, __, until=None):
        self.system = system

    def ask(self, **question):
        if self.system == "openvino" or (self.system == "compiled" and question["do"] == "run"):
            raise turns.Ended("gone")
        return {"seconds": {"ours": 1.0, "pytorch": 3.0}.get(self.system, 2.0)}

    def close(self):
        pass


def bench(tmp_path, **words):
    config = forward.Config(arch=("small",), seconds=(0.2, 0.4), dtype=("float32",), out=tmp_path, **words)
    return forward.Bench(config, {"peaks": {"float32": {"XLA": 1e9}}}, time.monotonic() + 60 * config.minutes)


def test_who_ends_badly_is_left_out_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "Child", Ending)
    found = bench(tmp_path)
    forward._grid("small", BIG, "float32", tmp_path, found)
    each = ["ours", "exported", "pytorch", "onnxruntime"]
    assert [(p["load"], p["system"]) for p in found.points] == [
        (load, system) for load in ("0.2 s × 1", "0.4 s × 1") for system in each
    ]
    assert [p["ratio"] for p in found.points if p["system"] == "pytorch"] == [3.0, 3.0]
    assert found.notes == [f"small, float32: {who} is left out: gone" for who in ("openvino", "compiled")]


def test_without_ours_there_are_times_but_no_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(
        turns, "Child", lambda *words, until: Ending(words[0], words[1].replace("ours", "openvino"), "", "")
    )
    found = bench(tmp_path, system=("pytorch",))
    forward._grid("small", BIG, "float32", tmp_path, found)
    assert [(p["system"], p["ratio"]) for p in found.points] == [("pytorch", None)] * 2


def test_nothing_begins_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "Child", Ending)
    found = replace(bench(tmp_path), until=0.0)
    forward._grid("small", BIG, "float32", tmp_path, found)
    assert found.points == []
    assert found.notes[0] == "small, float32, 0.2 s × 1: left out, 25 minutes are over (--minutes)"


def test_impossible_requests_are_refused(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["--rounds", "0"], "--rounds 0"),
        (["--arch", "nothing"], "nothing"),
        (["--minutes", "0"], "--minutes 0"),
        (["--dtype", "float16"], "float16"),
    ):
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
        {
            "model": model,
            "dtype": "float32",
            "load": load,
            "system": system,
            "ratio": top,
            "ratio_low": top,
            "ratio_high": top,
        }
        for model, top in (("slow", 1.5), ("fast", 4.0))
        for system in ("pytorch", "onnxruntime")
        for load in (loads if system == "pytorch" else loads[3:])
    ]
    monkeypatch.setattr(canvas, "save", lambda figure, path: kept.append(figure))
    leads.draw(tmp_path / "x.png", points, title="")
    for panel in kept[0].axes:
        assert [label.get_text() for label in panel.get_xticklabels()] == loads
        assert panel.get_ylim()[1] > 4.0
        places = [round(float(bar.lines[0].get_xdata()[0])) for bar in panel.containers]
        assert places == [0, 3]
