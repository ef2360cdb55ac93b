"""Utterances that leave early, as a run."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from compress.errors import InputError
from compress.plan import Shorter
from experiments import exits
from experiments.curves.bare import bare
from experiments.curves.leaving import mixed, read_speech, taken, thresholds_of
from experiments.curves.retime import retime
from experiments.curves.runs import read_curves
from jaxssl.inference.latency import Load
from jaxssl.models import checkpoint
from jaxssl.models.arch import AveragePooling, StridedConvolution
from jaxssl.models.model import shapes
from jaxssl.models.shorten import by_step, shortened
from jaxssl.training.corpus import HeldOut
from tests.archs import MEL, weights
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device")
QUICK = {"batch": 4, "seconds": 0.5, "rounds": 1, "probes": False, "shortest": 0.5, "frames": 400, "timed": 2}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("exits"), layers=2, dropout=0.0)


def config(place, out, **changes):
    return exits.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


@pytest.mark.slow
def test_a_threshold_of_0_is_the_whole_model_and_a_large_one_the_first_exit(place, tmp_path):
    """Also where the second layer hears half the frames, and a learned map brings them back."""
    arch, params = checkpoint.load(place.model)
    model, out = tmp_path / "halved", tmp_path / "exits"
    checkpoint.save(model, *shortened(arch, params, None, {1: StridedConvolution(2)}, learned=True))
    asked = replace(config(place, out, threshold=(0.0, 1e6)), model=str(model))
    exits.run(asked)
    dense, fixed, never, always = json.loads((out / "report.json").read_text())["points"]
    assert [row["name"] for row in (dense, fixed, never, always)] == [
        "dense",
        "layer-1-fixed",
        "below-0-entropy",
        "below-1e+06-entropy",
    ]
    utterances = len(np.load(out / "held-out/dense.npz")["losses"])
    for row, same, counts in ((never, dense, [0, utterances]), (always, fixed, [utterances, 0])):
        assert (row["valid_loss"], row["loss_difference"]) == (same["valid_loss"], same["loss_difference"])
        assert list(row["exits"].values()) == counts
        heard, alike = (np.load(out / f"held-out/{each['name']}.npz") for each in (row, same))
        np.testing.assert_array_equal(heard["losses"], alike["losses"])
    assert never["macs_g_per_s"] > dense["macs_g_per_s"] > always["macs_g_per_s"] > fixed["macs_g_per_s"]
    assert never["promised_speedup"] < 1 < always["promised_speedup"] < fixed["promised_speedup"]
    arch, _ = checkpoint.load(out / "models/layer-1-fixed")
    assert (len(arch.layers), arch.head.clusters, arch.upsampling) == (1, 6, None)
    assert [curve.label for curve in read_curves(out)] == ["early exit, fixed", "early exit, entropy"]
    _, again = retime(read_curves(out), Load(0.5), dtype="float32", rounds=1)
    assert [row["speedup"] for row in again.points[1:]] == [never["speedup"], always["speedup"]]  # of no one program
    told = (out / "curve.csv").read_bytes()
    exits.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": (3,)}, "--at 3: the model has 2 layers; give 1 to 2"),
        ({"at": (2,)}, "--at 2: the model ends there; give a layer from 1 to 1"),
        ({"at": (0,)}, "--at 0: give 1 to"),
        ({"threshold": (-1.0,)}, "--threshold -1.0: give 0 to"),
        ({"threshold": (float("nan"),)}, "--threshold nan: give 0 to"),
    ],
)
def test_impossible_exits_are_refused(place, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        exits.run(config(place, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_exits_of_other_frames_are_refused(place, tmp_path):
    arch, params = checkpoint.load(place.model)
    arch, params = shortened(arch, params, None, {1: AveragePooling(2)})
    checkpoint.save(tmp_path / "model", replace(arch, upsampling=None), params)
    asked = replace(config(place, tmp_path / "run"), model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="1 behind layer 1, 2 behind layer 2; the exits have other frames"):
        exits.run(asked)
    assert not (tmp_path / "run").exists()


def test_what_stays_of_a_model_that_merges_frames_is_a_model():
    """Without heads there are no keys by which they could merge."""
    arch = by_step(MEL, weights(MEL), Shorter(2, 1, "merge"))[0]
    left, params = bare(arch, weights(arch))
    assert [layer.heads for layer in left.layers] == [0] * 3
    assert jax.tree.structure(params) == jax.tree.structure(shapes(left))


def test_speech_without_audio_is_refused():
    with pytest.raises(InputError, match=r"a/b\.npy: no audio"):
        read_speech([Path("a/b.npy")], seconds=1.0)


def test_an_utterance_takes_the_first_exit_that_is_sure():
    found = np.array([[2.0, 1.0], [0.5, 3.0], [3.0, 3.0], [0.1, 0.1]])
    np.testing.assert_array_equal(taken(found, (2, 3, 6), 1.5), [3, 2, 6, 2])
    np.testing.assert_array_equal(taken(found, (2, 3, 6), 0.0), [6] * 4)
    heard = {exit: HeldOut(*(np.arange(4.0) + exit * scale for scale in (10, 20, 30))) for exit in (2, 3, 6)}
    np.testing.assert_array_equal(mixed(heard, np.array([3, 2, 6, 2])).losses, [30, 21, 62, 23])
    assert thresholds_of(found, 3) == (0.4, 1.5, 3.0)
