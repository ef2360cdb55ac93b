"""A command that was refused has changed nothing: the corrected one works in the same folder, old reports stay."""

from pathlib import Path

import pytest
import soundfile

from compress.errors import InputError
from experiments import (
    card,
    combine,
    distill,
    heads,
    heads_atlas,
    int8,
    joint,
    latency,
    lowrank,
    plan,
    pretrain,
    probe,
    rows,
    weights,
)
from jaxssl.data.demo import synthesize
from jaxssl.runtime import files
from tests.experiments.small import make

CURVES = {combine: {"plan": ("rows=12",)}, distill: {}, heads: {}, int8: {}, joint: {"target": (0.3,)}}
CURVES |= {plan: {"budget": ("rtf=90%",)}, rows: {}, weights: {}}


class Reached(Exception):
    """A run begins."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    for i in range(8):
        (folder / f"people/s{i % 2}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"people/s{i % 2}/{i}.flac", synthesize(0.5, seed=i), 16000)
    return make(folder, layers=2)


def commands(place):
    """Each command, what it is refused for, and how it is corrected; None: its run begins only when all is measured."""
    model, people = str(place.model), place.audio.parent / "people"
    for module, words in CURVES.items():
        words = {"model": model, "audio": (str(place.audio),), "probes": False, "shortest": 0.5, "batch": 4, **words}
        yield module, {**words, "corpus": place.corpus, "labels": "gone"}, "labels gone", {"labels": None}
    learned = {"model": model, "corpus": place.corpus, "shortest": 0.5, "batch": 4}
    yield pretrain, {**learned, "labels": "gone"}, "gone", {"labels": None}
    yield pretrain, {**learned, "batch": 50}, "batch of 50", {"batch": 4}
    yield card, {"model": model, "speakers": Path("gone")}, "gone", None
    yield heads_atlas, {"model": model, "audio": ("gone",)}, "gone", None
    yield latency, {"model": "gone"}, "gone", None
    yield lowrank, {"model": model, "audio": ("gone",), "rank": (4,)}, "gone", None
    asked = {"models": (model,), "task": ("speakers",), "data": str(people)}
    yield probe, {**asked, "teacher": "gone", "measures": True}, "gone", None


def test_what_was_refused_owns_nothing(place, tmp_path, monkeypatch):
    for number, (module, words, message, corrected) in enumerate(commands(place)):
        out = tmp_path / str(number) / "run"
        refused = module.Config(**words, out=out)
        with pytest.raises(InputError, match=message):
            module.run(refused)
        assert not (out / "config.json").exists(), module
        if corrected is None:
            files.claim(out)
        else:
            right = module.Config(**{**words, **corrected}, out=out)
            with monkeypatch.context() as patch:
                patch.setattr(files, "own", begins)
                with pytest.raises(Reached):
                    module.run(right)
        files.own(out, refused)
        files.write_json(out / "report.json", {})
        before = {path.name: path.read_bytes() for path in out.glob("*.json")}
        with pytest.raises(InputError, match=message):
            module.run(refused)
        assert {path.name: path.read_bytes() for path in out.glob("*.json")} == before, module


def begins(out, settings):
    raise Reached
