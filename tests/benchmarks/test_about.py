"""What a benchmark says of its machine."""

import json

import pytest

from benchmarks import about
from benchmarks.turns import Ended
from compress.errors import InputError
from jaxssl.inference import peak
from jaxssl.models import choice
from jaxssl.runtime import native, processor

ABOUT = {
    "machine": {"device": "cpu"},
    "processor": "AMD EPYC",
    "threads": 2,
    "instructions": ["AVX2", "AVX-512"],
    "tiers": {"bfloat16": "AVX512-BF16", "int8": "VNNI"},
    "bandwidth": {"one thread": 12.34, "all 2": 20.0},
    "peaks": {"float32": {"XLA": 2.0e11, "our kernels": 2.36e11, "PyTorch": 1e11}, "int8": {"XLA": 5e9}},
}


def test_the_head_of_a_benchmark():
    assert about.lines(ABOUT) == [
        "cpu: AMD EPYC, 2 threads; AVX2, AVX-512",
        "memory is read at 12.3 GB/s by one thread, 20.0 GB/s by all 2",
        "a large product in float32: 236 GMAC/s (XLA 200, our kernels 236, PyTorch 100)",
        "a large product in int8: 5 GMAC/s (XLA 5)",
        "our kernels multiply bfloat16 by AVX512-BF16, int8 by VNNI",
    ]
    assert about.peak(ABOUT, "float32") == 2.36e11


class Told:
    """Stands for a process that says what is known, or ends."""

    def __init__(self, ends):
        self.ends = ends

    def __call__(self, module, side):
        self.side = side
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, dtypes):
        if self.side in self.ends:
            raise Ended("killed by SIGKILL")
        rates = {"jax": {"float32": {"XLA": 1.0}}, "torch": {"float32": {"PyTorch": 2.0}}}
        return {"peaks": rates[self.side], **({"threads": 2} if self.side == "jax" else {})}


def test_what_cannot_be_measured_is_told(monkeypatch):
    lines = []
    monkeypatch.setattr(about.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(about, "child", Told(()))
    wanted = {"peaks": {"float32": {"XLA": 1.0, "PyTorch": 2.0}}, "threads": 2}
    assert about.measure(["float32"], lines.append) == wanted
    assert not lines
    monkeypatch.setattr(about, "child", Told(("torch",)))
    assert about.measure(["float32"], lines.append)["peaks"] == {"float32": {"XLA": 1.0}}
    assert lines == ["PyTorch's peak is left out: killed by SIGKILL"]
    monkeypatch.setattr(about, "child", Told(("jax",)))
    with pytest.raises(InputError, match="could not be measured: killed"):
        about.measure(["float32"], lines.append)


def test_every_part_is_measured_and_goes_into_json(monkeypatch):
    monkeypatch.setattr(about, "READ", 1 << 20)
    monkeypatch.setattr(about, "TRIES", 1)
    monkeypatch.setattr(peak, "rates", lambda dtype: {"XLA": 1.0})
    found = json.loads(json.dumps(about.by_jax({"dtypes": ["float32"]})))
    assert found["bandwidth"].keys() == {"one thread", f"all {processor.threads()}"}
    assert all(rate > 0 for rate in found["bandwidth"].values())
    assert found["peaks"] == {"float32": {"XLA": 1.0}}
    assert about.lines(found)


def test_peaks_are_of_our_kernels_too(monkeypatch):
    """Where they run; the highest counts."""
    try:
        for dtype in ("float32", "bfloat16", "int8"):
            found = peak.rates(dtype, size=64, rounds=1)
            assert set(found) == {"XLA", *["our kernels"] * choice.packs(int8=dtype == "int8")}
            assert peak.matmul_peak(dtype, size=64, rounds=1) == max(found.values())
        monkeypatch.setattr(native, "ready", lambda: False)
        peak.rates.cache_clear()
        assert set(peak.rates("bfloat16", size=64, rounds=1)) == {"XLA"}
    finally:
        peak.rates.cache_clear()


CPUINFO = """processor\t: 0
model name\t: A Processor
flags\t\t: fpu avx2 avx512f avx512_vnni amx_tile amx_bf16 amx_int8

processor\t: 1
model name\t: Another
"""


def test_a_processor_is_read_off_linux(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "cpuinfo")
    processor.told.cache_clear()
    try:
        assert processor.name() == "A Processor"
        assert processor.sets() == ("AVX2", "AVX-512", "AVX512-VNNI", "AMX-BF16", "AMX-INT8")
        (tmp_path / "cpuinfo").unlink()
        processor.told.cache_clear()
        assert processor.sets() == ()
        assert processor.name()
    finally:
        processor.told.cache_clear()
