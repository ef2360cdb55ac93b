"""What tests of whole runs share."""

import time

import jax
import pytest

from experiments.curves import points
from jaxssl.inference.latency import Program
from jaxssl.training import corpus, fit
from jaxssl.training.sharding import make_mesh
from tests.experiments.curves import HEADS, ROWS, WEIGHTS, write


@pytest.fixture(scope="module")
def one_device():
    """What these tests are about does not depend on how many devices share the work."""
    one = make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        for module in (fit, corpus):
            patch.setattr(module, "make_mesh", lambda fsdp: one)
        yield


@pytest.fixture(scope="module")
def untimed():
    """Points are timed by a program that does nothing: compiling three is a third of a run whose times nobody reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "compile_forward", lambda arch, params, load, **_: Program(_rest, load, 0.0, 0.0, None))
        yield


def _rest():
    time.sleep(1e-4)


@pytest.fixture
def three(tmp_path):
    """Folders of three made-up runs."""
    return tuple(write(tmp_path / n, rows) for n, rows in (("weights", WEIGHTS), ("heads", HEADS), ("rows", ROWS)))
