"""Models of other mixers than attention, as a run."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from experiments import mixers
from jaxssl.models import checkpoint
from jaxssl.models.exchange import exchanged
from tests.archs import REUSING, WAVLM, fresh
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"layerwise": 3, "steps": 2, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("mixers"), layers=2, dropout=0.0)


def config(place, out, **changes):
    words = {**QUICK, "stack": "unroll", **changes}
    return mixers.Config(model=str(place.model), corpus=place.corpus, out=out, **words)


@pytest.mark.slow
def test_each_mixer_is_a_point_from_the_dense_model(place, tmp_path):
    out = tmp_path / "mixers"
    asked = config(place, out, layers=(1,))
    mixers.run(asked)
    dense, *points = json.loads((out / "report.json").read_text())["points"]
    assert [row["name"] for row in points] == ["attention", "summary_mixing", "mamba"]
    arch, params = checkpoint.load(place.model)
    for row in points:
        assert row["loss_difference_low"] <= row["loss_difference"] <= row["loss_difference_high"]
        assert row["loss_before"] != dense["valid_loss"]
        found, learned = checkpoint.load(out / "models" / row["name"])
        assert found == exchanged(arch, row["name"], (1,))
        trained = jax.tree.map(lambda one, two: np.abs(one - two).max(), learned["layers"]["0"], params["layers"]["0"])
        assert all(0 < change < 0.01 for change in jax.tree.leaves(trained))  # the other layer goes on from the dense
    told = (out / "curve.csv").read_bytes()
    mixers.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told


def test_everything_but_the_mixers_is_the_dense_models(place, tmp_path):
    arch, params = checkpoint.load(place.model)
    found = mixers.exchange(config(place, tmp_path), mixers.Subject(arch, params, {}), "mamba")
    for i in ("0", "1"):
        assert set(found.params["layers"][i]) == {"mamba", "mamba_norm", "ffn", "ffn_norm"}
        assert found.params["layers"][i]["mamba_norm"] is params["layers"][i]["attention_norm"]
        assert found.params["layers"][i]["ffn"] is params["layers"][i]["ffn"]
    again = mixers.exchange(config(place, tmp_path), mixers.Subject(arch, params, {}), "attention")
    assert again.arch == arch
    assert not np.array_equal(
        again.params["layers"]["0"]["attention"]["q"]["kernel"], params["layers"]["0"]["attention"]["q"]["kernel"]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"mixers": ()}, "name at least one of --mixers"),
        ({"layers": (2,)}, "layer 2 is not there; the model has 0 to 1"),
        ({"masked": True}, "--masked: it is for --recover distil"),
    ],
)
def test_bad_words_leave_no_folder(place, words, told, tmp_path):
    with pytest.raises(InputError, match=told):
        mixers.run(config(place, tmp_path / "run", **words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arch", "told"),
    [(WAVLM, "layer 0 mixes frames by gated_attention"), (REUSING, "layer 0 lends its attention maps")],
    ids=["wavlm", "reused"],
)
def test_what_is_no_plain_attention_is_refused(place, tmp_path, arch, told):
    checkpoint.save(tmp_path / "model", arch, fresh(arch))
    asked = replace(config(place, tmp_path / "run"), model=str(tmp_path / "model"))
    with pytest.raises(InputError, match=told):
        mixers.run(asked)
