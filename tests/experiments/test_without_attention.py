"""Models whose layers mix frames without attention train as others do."""

from dataclasses import replace

import numpy as np

from jaxssl.models import checkpoint
from jaxssl.training.corpus import load_data
from jaxssl.training.fit import fit
from jaxssl.training.settings import Training
from tests.archs import SUMMARY, weights
from tests.experiments.small import make


def test_they_are_validated_without_a_picture_of_attention(tmp_path, one_device, untimed):
    place = make(tmp_path, layers=1)
    arch = replace(checkpoint.load(place.model)[0], layers=SUMMARY.layers[:1])
    training = Training(steps=1, batch=2, crop=1.0, shortest=0.2, valid_every=1, log_every=1)
    data = load_data(place.corpus, arch, labels=None, valid=None)
    fitted = fit(tmp_path / "run", arch, weights(arch), data, training)
    assert np.isfinite(fitted.valid["loss"])
    assert (tmp_path / "run/metrics.jsonl").read_text().count("valid")
