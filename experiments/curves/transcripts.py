"""What a fine-tuned model writes of held-out speech: its CTC loss and character error rate, before any new training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxssl.data.batches import Corpus
from jaxssl.data.logmel import Stats
from jaxssl.inference.encode import LONGEST, encode_all
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.runtime.cli import progress
from jaxssl.training.corpus import Data
from jaxssl.training.ctc import decode, needed
from jaxssl.training.ctc_layer import CtcLayer, ctc_losses, padded, read_ctc
from jaxssl.training.error_rates import error_rate
from jaxssl.training.probe import interval

MOST = 200  # held-out utterances that are written down, evenly spread
TOGETHER = 8  # utterances of one call


@dataclass(frozen=True)
class Transcripts:
    """Held-out speech with what is said in it, and a CTC layer that writes it down.

    Attributes:
        layer: on the encoder's output.
        corpus: the speech.
        chosen: numbers of its utterances.
        said: their symbols, as numbers.
        mel: statistics by which log-Mel models hear the speech, where it is waveforms.
    """

    layer: CtcLayer
    corpus: Corpus
    chosen: tuple[int, ...]
    said: tuple[np.ndarray, ...]
    mel: Stats | None = None

    def measure(self, arch: Arch, params: Params, *, dtype: Any) -> dict[str, float]:
        """Return `ctc_loss` (nats a character) and `character_error_rate`, with 95 % intervals over utterances.

        The best symbol of each frame is taken, without a language model. An utterance whose characters do not fit a
        model's frames, as one that joins frames has fewer, counts as all wrong and not at all in the loss.
        """
        heard = self._heard(arch, params, dtype)
        losses, written = self._written(heard)
        every, counts = np.arange(len(heard)), np.array([len(said) for said in self.said])
        rate = error_rate([self.layer.write(said) for said in self.said], written, every, seed=0)
        name = "character_error_rate"
        told = {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        fits = np.array([needed(said) <= len(frames) for said, frames in zip(self.said, heard, strict=True)])
        if fits.any():
            low, high = interval(losses[fits], counts[fits], seed=0)
            told |= {"ctc_loss": float(losses[fits].sum() / counts[fits].sum()), "ctc_loss_low": low}
            told |= {"ctc_loss_high": high}
        return told

    def _written(self, heard: Sequence[np.ndarray]) -> tuple[np.ndarray, list[list[str]]]:
        """Return the CTC loss of each utterance, (utterances,), and its best symbols."""
        long, most, total = max(map(len, heard)), max(map(len, self.said)), len(heard)
        losses, written = list[float](), list[list[str]]()
        for start in range(0, total, TOGETHER):
            rows = [row % total for row in range(start, start + TOGETHER)]  # filled up, so that one program does
            frames, counts = (np.array([len(x[row]) for row in rows], np.int32) for x in (heard, self.said))
            last, said = (
                padded([heard[row] for row in rows], to=long),
                padded([self.said[row] for row in rows], to=most),
            )
            found = ctc_losses(self.layer.kernel, self.layer.bias, last, frames, said, counts)
            loss, best = map(np.asarray, found)
            losses += loss.tolist()
            written += [self.layer.write(decode(line[:count])) for line, count in zip(best, frames, strict=True)]
        return np.array(losses[:total]), written[:total]

    def _heard(self, arch: Arch, params: Params, dtype: Any) -> list[np.ndarray]:
        """Return the encoder's output of each utterance, (frames, width) float32."""
        inputs, heard = [self.corpus.inputs(i) for i in self.chosen], dict[int, np.ndarray]()
        how = {"programs": 2, "waste": 0.3, "longest": LONGEST, "dtype": dtype}
        run = encode_all(arch, params, inputs, stats=self.mel if arch.front.features else None, **how)
        with progress("writing down held-out speech", len(inputs)) as tick:
            for number, last in run:
                heard[number] = last.astype(np.float32)
                tick()
        return [heard[number] for number in range(len(inputs))]


def open_transcripts(model: Model, data: Data | None) -> tuple[Transcripts | None, str | None]:
    """Find held-out speech that a model's CTC layer can write down, and a line where it has one and there is none."""
    layer = read_ctc(model.ctc) if data is not None else None
    if data is None or layer is None:
        return None, None
    corpus, among = data.valid
    spelled = {i: layer.spell(data.texts[i]) for i in among.tolist()}
    known = {i: said for i, said in spelled.items() if said is not None}
    where = f"{len(known)} of {len(among)} held-out utterances have a transcript in the symbols of the CTC layer"
    if not known:
        return None, f"{where}: no CTC loss, no character error rate; {_remedy(layer, data)}"
    places = np.unique(np.linspace(0, len(known) - 1, min(MOST, len(known))).round().astype(int))
    chosen = tuple(list(known)[place] for place in places.tolist())
    found = Transcripts(layer, corpus, chosen, tuple(known[i] for i in chosen), data.mel)
    return found, f"{where}; {len(chosen)} are used"


def _remedy(layer: CtcLayer, data: Data) -> str:
    """Say how many transcripts there are at all, and what would do."""
    spelled = sum(layer.spell(text) is not None for text in data.texts)
    there = f"{spelled} of all {len(data.texts)} utterances there have one"
    symbols = "".join(symbol for symbol in layer.symbols if len(symbol) == 1)
    if (foreign := next((text for text in data.texts if text and layer.spell(text) is None), None)) is not None:
        there = f"{there}, the first other text is {foreign[:40]!r} and the symbols are {symbols[:60]!r}"
    return (
        f"{there}; name transcribed speech with --held-out: *.trans.txt beside the audio, as LibriSpeech has it, or "
        "manifest.tsv with a column text"
    )
