"""Models that hear less of the future, as a run."""

import json

import numpy as np
import pytest

from compress.errors import InputError
from experiments import contexts
from jaxssl.inference import streaming
from jaxssl.inference.encode import front_inputs
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.model import apply
from tests.archs import SUMMARY, fresh
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"steps": 2, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("contexts"), layers=2, dropout=0.0)


def config(place, out, **changes):
    return contexts.Config(
        model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, "stack": "unroll", **changes}
    )


@pytest.mark.slow
def test_each_context_is_a_point_that_streams_as_it_was_trained(place, tmp_path):
    out = tmp_path / "contexts"
    asked = config(place, out, right=(2, 0), left=6, positions=("causal", "both"))
    contexts.run(asked)
    dense, *points = json.loads((out / "report.json").read_text())["points"]
    assert [row["name"] for row in points] == ["right-0-causal", "right-2-causal", "right-0-both", "right-2-both"]
    assert "lookahead_ms" not in dense
    assert [row["lookahead_ms"] for row in points][:2] == [15.0, 15.0 + 2 * 2 * 20]
    assert points[2]["lookahead_ms"] > points[0]["lookahead_ms"]
    for row in points:
        assert row["loss_before"] != dense["valid_loss"]
        model = load_model(str(out / "models" / row["name"]), seed=0)
        assert {layer.attention.context for layer in model.arch.layers} == {(6, row["level"])}
        samples = np.random.default_rng(0).normal(size=(1, 16_000)).astype(np.float32)
        inputs, _ = front_inputs(model.arch, samples, None, model.stats)
        found = streaming.stream(model.arch, model.params, inputs, 4 * streaming.unit(model.arch))
        np.testing.assert_allclose(found.last, apply(model.arch, model.params, inputs).last, atol=1e-4)
    told = (out / "curve.csv").read_bytes()
    contexts.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"right": ()}, "name at least one --right and one of --positions"),
        ({"positions": ()}, "name at least one --right and one of --positions"),
        ({"masked": True}, "--masked: it is for --recover distil"),
        ({"left": 10**9}, "would hold 1000000000 frames"),
    ],
)
def test_bad_words_leave_no_folder(place, words, told, tmp_path):
    with pytest.raises(InputError, match=told):
        contexts.run(config(place, tmp_path / "run", **words))
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_time_when_the_default_was_another_is_not_gone_on_with(tmp_path):
    """It did not name its model."""
    (tmp_path / "config.json").write_text(json.dumps({"model": None}))
    with pytest.raises(InputError, match="a run with --model None is there, this one has melhubert-mini"):
        contexts.run(contexts.Config(out=tmp_path))


def test_what_cannot_stream_is_refused_before_any_work(place, tmp_path):
    checkpoint.save(tmp_path / "model", SUMMARY, fresh(SUMMARY))
    asked = contexts.Config(model=str(tmp_path / "model"), out=tmp_path / "run")
    with pytest.raises(InputError, match="SummaryMixing takes the mean of all frames"):
        contexts.run(asked)
    assert not (tmp_path / "run").exists()
