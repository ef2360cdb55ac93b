"""The same speech through faster-whisper, whole: its log-Mel, CTranslate2's encoder and decoder.

It comes with the extra `real`; nothing of it is imported before it is needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from experiments.transcripts.decoder import LONGEST, optional


@dataclass(frozen=True)
class FasterWhisper:
    """Writes down utterances as faster-whisper does when it is asked for the most likely token each time.

    Attributes:
        model: `faster_whisper.WhisperModel`, in float32.
        prompt: how many tokens every transcript begins with.
    """

    model: Any
    prompt: int

    def write(self, samples: np.ndarray) -> str:
        """Write down an utterance of at most 30 s, (samples,) at 16 kHz.

        Everything of its own that would choose or drop texts is off: beams, temperatures, texts before, thresholds.
        """
        parts, _ = self.model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            max_new_tokens=LONGEST - self.prompt,
        )
        return "".join(part.text for part in parts)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Return what its encoder makes of an utterance in its window, (frames, width) float32."""
        extract = self.model.feature_extractor
        mel = extract(samples)[:, :-1]
        mel = np.pad(mel, ((0, 0), (0, extract.nb_max_frames - mel.shape[1])))
        view = optional("ctranslate2").StorageView.from_array(np.array(mel[None], np.float32, order="C"))
        return np.asarray(self.model.model.encode(view, to_cpu=True))[0]


def open_faster_whisper(folder: Path, *, prompt: int) -> FasterWhisper:
    """Open a folder of CTranslate2's.

    Raises:
        InputError: the extra is not installed, or the folder cannot be opened.
    """
    library = optional("faster_whisper")
    try:  # one thread, as our decoder has: its threads and XLA's wait for each other by spinning
        model = library.WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    except Exception as error:  # it has exceptions of many libraries
        raise InputError(f"{folder}: faster-whisper cannot open it ({error}); copy or convert it again") from None
    return FasterWhisper(model, prompt)
