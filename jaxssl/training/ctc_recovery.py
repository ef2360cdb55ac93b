"""Recovery of a fine-tuned model: it writes what is said, as its CTC layer did before it was compressed.

The CTC layer stays as it is, so that it still fits every model made from that one; the encoder learns to serve it. An
utterance teaches what is said where all of it is in the batch, not a crop, and its transcript is known in the layer's
symbols; of every other one the teacher alone is heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from compress.errors import InputError
from jaxssl.data.batches import Corpus
from jaxssl.models.arch import Arch
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Output, Params
from jaxssl.training.ctc import BLANK, needed
from jaxssl.training.ctc_layer import CtcLayer, padded
from jaxssl.training.distillation import LAST, Taught, Wanted, check_frames, divergence, mean, once, zero
from jaxssl.training.losses import Sums, ratio


@dataclass(frozen=True, eq=False)
class Script:
    """What is said in each utterance of a corpus, as numbers of symbols.

    Attributes:
        symbols: (utterances, most) int32, padded.
        counts: (utterances,) int32; 0 where it is not known, or a batch has not all of the utterance.
    """

    symbols: np.ndarray
    counts: np.ndarray

    def of(self, index: Array) -> tuple[Array, Array]:
        """Return symbols, (batch, most), and counts, (batch,), of utterances by their numbers; −1 is none."""
        symbols, counts = jnp.asarray(self.symbols)[index], jnp.asarray(self.counts)[index]
        return symbols, jnp.where(index >= 0, counts, 0)


def script(layer: CtcLayer, texts: Sequence[str], corpus: Corpus, among: np.ndarray, *, crop: int) -> Script:
    """Spell what is said in those utterances that a batch has whole.

    Args:
        layer: whose symbols.
        texts: of the corpus's utterances.
        corpus: the speech.
        among: the utterances to train on.
        crop: inputs of the longest piece.

    Raises:
        InputError: no utterance teaches anything; the numbers say why.
    """
    mine = set(among.tolist())
    known = {i: said for i, text in enumerate(texts) if i in mine and (said := layer.spell(text)) is not None}
    whole = {i: said for i, said in known.items() if corpus.lengths[i] <= crop}
    frames = 1 + (corpus.lengths - corpus.reach) // corpus.stride
    fits = {i: said for i, said in whole.items() if needed(said) <= frames[i]}
    if not fits:
        raise InputError(
            f"CTC: of {len(among)} utterances to train on {len(known)} have a transcript in the layer's symbols, "
            f"{len(whole)} of these are within --crop, {len(fits)} have frames enough; give transcribed speech and a "
            "longer --crop, or --recover distil"
        )
    empty = np.zeros(0, np.int32)
    rows = [fits.get(i, empty) for i in range(len(texts))]
    return Script(padded(rows, to=max(map(len, rows))), np.array([len(row) for row in rows], np.int32))


@dataclass(frozen=True, eq=False)
class Writing:
    """Write what is said, and as the teacher does, both through one CTC layer that is not trained.

    L = CTC / characters + α · KL(softmax(t / T) ‖ softmax(s / T)); CTC averaged over the utterances whose transcript is
    there (Graves et al. 2006), the divergence over frames.

    Attributes:
        layer: of both.
        alpha: α; 0 leaves the teacher out.
        temperature: T.
    """

    layer: CtcLayer
    alpha: float = 1.0
    temperature: float = 1.0

    masked: ClassVar = False
    wanted: ClassVar = Wanted(plain=True, masked=False, last=True)

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Return nothing: the layer is there.

        Raises:
            InputError: it does not fit one of them, or the settings are out of range.
        """
        width = len(self.layer.kernel)
        if (student.width, teacher.width) != (width, width):
            widths = f"{student.width} and {teacher.width}"
            raise InputError(f"CTC: the layer takes frames {width} wide, student and teacher give {widths}; keep width")
        if not self.temperature > 0 or not self.alpha >= 0:
            given = f"temperature {self.temperature:g} and alpha {self.alpha:g}"
            raise InputError(f"CTC: {given}; give more than 0 and 0 or more")
        check_frames(student, teacher, 1)
        return {}

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return the loss; reported beside it: `ctc` (nats a character) and `soft`."""
        assert taught.plain is not None
        assert taught.script is not None
        symbols, counts = taught.script
        mine, theirs = (self._logits(x) for x in (output.last, taught.plain.hidden[LAST]))
        valid = frame_mask(output.last_lengths, mine.shape[1])
        surplus = (jnp.arange(symbols.shape[1])[None] >= counts[:, None]).astype(jnp.float32)
        each = optax.ctc_loss(mine, (~valid).astype(jnp.float32), symbols, surplus, blank_id=BLANK)
        there = counts > 0
        ctc = ratio(
            (each / jnp.maximum(counts, 1).astype(jnp.float32)).sum(where=there), there.sum().astype(jnp.float32)
        )
        soft = mean(divergence(theirs / self.temperature, mine / self.temperature), valid) if self.alpha else zero()
        value = ctc + self.alpha * soft
        return value, {
            **once({"loss": value, "soft": soft}),
            "ctc": (ctc, there.any().astype(jnp.float32)),  # a batch without transcripts says nothing of it
        }

    def _logits(self, last: Array) -> Array:
        return last.astype(jnp.float32) @ jnp.asarray(self.layer.kernel) + jnp.asarray(self.layer.bias)[None, None]
