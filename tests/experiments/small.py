"""A small labelled corpus and a small model with weights that matter, for runs of seconds."""

import random
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from jaxssl.data.demo import synthesize
from jaxssl.models import checkpoint
from jaxssl.models.arch import ClusterHead, Dropout, LogMel
from jaxssl.models.model import shapes
from jaxssl.training.preparation import Preparation, prepare
from tests.archs import MEL, transformer_layer
from tests.processes import start


@dataclass(frozen=True)
class Small:
    """Folders: of audio, of the prepared corpus, of the model."""

    audio: Path
    corpus: Path
    model: Path

    def start(self, module, out, *, devices=1, **changes):
        """Start a command on them."""
        words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", *_words(value))]
        inputs = ("--corpus", self.corpus, "--model", self.model)
        return start("-m", module, *inputs, "--out", out, *words, devices=devices)

    def finish(self, module, out, **changes):
        """Run to the end; standard output and error."""
        with self.start(module, out, **changes) as process:
            output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return output, errors

    def interrupt(self, module, out, number, how, **changes):
        """Send a signal a moment after update `number`; exit code, output, and the rest of standard error."""
        with self.start(module, out, **changes) as process:
            reach(process, number)
            time.sleep(random.Random(number).uniform(0, 0.02))
            process.send_signal(how)
            output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors


def reach(process, number):
    """Wait until a run has done an update."""
    for line in process.stderr:
        if line.startswith(f"training {number}/"):
            return
    raise AssertionError(f"ended before update {number}: {process.communicate()}")


def make(folder, *, layers, dropout=0.1):
    """Write audio, corpus and model."""
    made = Path(_speech().name)
    for part in ("audio", "prepared"):
        shutil.copytree(made / part, folder / part)
    dropout = Dropout(hidden=dropout, attention=dropout, activation=dropout)
    arch = replace(
        MEL, front=LogMel(40, 2), layers=(transformer_layer(4, 24),) * layers, head=ClusterHead(6), dropout=dropout
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes(arch))
    checkpoint.save(folder / "model", arch, params)
    return Small(folder / "audio", folder / "prepared", folder / "model")


@lru_cache
def _speech():
    """Prepare the speech once for all; its manifest goes on naming the audio that is here."""
    folder = tempfile.TemporaryDirectory(prefix="speech-")
    audio = Path(folder.name) / "audio"
    audio.mkdir()
    for i in range(14):
        soundfile.write(audio / f"u{i}.flac", synthesize(0.8 + 0.1 * (i % 3), seed=i), 16000)
    words = {"clusters": 6, "valid": 0.2, "restarts": 1, "storage": "float32"}
    prepare(Preparation(audio=(str(audio),), out=audio.parent / "prepared", **words))
    return folder  # removed when the process ends


def _words(value):
    return [] if value is True else [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
