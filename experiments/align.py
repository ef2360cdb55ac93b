"""Find when which phone is said in real speech, so that probes can ask: transcripts, then forced alignment.

    python -m experiments.align --audio LibriSpeech/test-other --out phones
    python -m experiments.align --audio FOLDER --texts known --out phones

Speech without a text is written down by Whisper tiny.en (the extra `real`), and every utterance is aligned with its
text by PocketSphinx (the extra `align`); words that its dictionary lacks are pronounced by eSpeak NG's rules (the extra
`espeak`). What cannot be aligned is left out. --texts known leaves out what has no text.

    manifest.tsv   the utterances, each audio file where it is, with the text
    phones.tsv     id, start, end, label: the 39 phones of CMUdict and SIL

The folder is a corpus: `experiments.probe --data phones`, `experiments.prepare --audio phones`. Where phone times came
with the speech, how far the alignment agrees with them is told: share of the 10 ms frames with the same phone, and of
the boundaries within 20 ms.

Labels are a machine's: they have its errors, which a probe cannot go beyond. Whisper tiny.en writes 6 % of the words of
LibriSpeech test-clean wrong and 15 % of test-other's (Radford et al. 2022). Of what flite and eSpeak say and tell (25
utterances, noise and rooms added) the alignment has the same phone at 76 % of the frames and 75 % of the boundaries
within 20 ms; of one utterance that the Montreal Forced Aligner had aligned, 77 % of the frames with a phone and 81 %.
It took 3 minutes of CPU time for 65 minutes of LibriSpeech.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from compress.errors import InputError
from experiments.probes.agreement import Agreement, agreement
from experiments.transcripts.decoder import open_decoder, published
from experiments.transcripts.hearing import hear_all, listener, whole, window
from experiments.transcripts.spoken import Spoken
from jaxssl.data import aligner, corpora
from jaxssl.data.audio import read
from jaxssl.data.manifest import Manifest, Utterance, write
from jaxssl.inference.source import load_model
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import There


@dataclass(frozen=True)
class Config:
    """Align speech with its text."""

    audio: There[tuple[str, ...]] = ()
    """speech: folders, globs, files, .tsv manifests"""
    texts: Literal["all", "known", "heard"] = "all"
    """all: Whisper writes down what has no text; known: that is left out; heard: it writes down everything"""
    out: Path = Path("phones")
    """folder of the tables"""


def run(config: Config) -> None:
    """Write down, align, and write the tables."""
    ranges.check(config)
    if not config.audio:
        raise InputError("no speech: name files, folders or a manifest.tsv with --audio")
    aligner.check()
    utterances = corpora.read(config.audio).utterances
    files.claim(config.out)
    spoken = _with_texts(utterances, config.texts)
    align, strange = aligner.open_aligner(u.text for u in spoken)
    bar = follow(spoken, "aligning", total=len(spoken))
    aligned = [replace(u, phones=align(read(u.path).samples, u.text)) for u in bar]
    kept = [u for u in aligned if u.phones]
    if not kept:
        raise InputError(f"none of {len(aligned)} utterances fits its text; look at the texts")
    truth = {u.id: u.phones for u in utterances if u.phones}
    found = agreement([(truth[u.id], u.phones) for u in kept if u.id in truth])
    files.own(config.out, config)
    write(Manifest(tuple(kept)), config.out)
    counts = {"utterances": len(utterances), "with_text": len(spoken), "aligned": len(kept), "by_espeak": len(strange)}
    files.write_json(config.out / "report.json", {**counts, "agreement": found and vars(found)})
    _tell(config.out, counts, found)


def _with_texts(utterances: Sequence[Utterance], texts: str) -> list[Utterance]:
    """Give every utterance that is used a text."""
    known = [u for u in utterances if u.text and texts != "heard"]
    if texts == "known":
        if not known:
            raise InputError(f"--texts known: none of {len(utterances)} utterances has a text; --texts all hears them")
        return known
    rest = [u for u in utterances if not u.text or texts == "heard"]
    heard = _written([replace(u, phones=()) for u in rest]) if rest else []
    by_id = {u.id: u for u in (*known, *heard)}
    return [by_id[u.id] for u in utterances if u.id in by_id]


def _written(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Write down utterances that fit Whisper's window; what it writes nothing for is left out."""
    place = published()
    decoder, model = open_decoder(place), load_model(str(place), seed=0)
    longest = whole(model.arch)
    fitting = [u for u in utterances if u.samples <= longest]
    spoken = [Spoken(u.id, read(u.path).samples, "") for u in fitting]
    wide = window(model.arch, None)
    texts = [""] * len(spoken)
    listeners = {longest: listener(model.arch, model.params, longest)}
    with progress("writing down speech", len(spoken)) as tick:
        for numbers, frames in hear_all(listeners, spoken, wide):
            for number, text in zip(numbers, decoder.write(frames), strict=True):
                texts[number] = text.strip()
                tick()
    return [replace(u, text=text) for u, text in zip(fitting, texts, strict=True) if any(c.isalnum() for c in text)]


def _tell(out: Path, counts: dict[str, int], found: Agreement | None) -> None:
    line = f"{counts['aligned']} of {counts['utterances']} utterances aligned, {counts['by_espeak']} words by eSpeak"
    if found is not None:
        line += f"; as the {found.utterances} tables of phone times that were there: {found.frames:.1%} of the frames, "
        line += f"{found.speech:.1%} of those with a phone, {found.boundaries:.1%} of the boundaries within 20 ms"
    console.print(f"{line}\nwrote {out}: manifest.tsv, phones.tsv, report.json", markup=False)


if __name__ == "__main__":
    main(run, Config, __doc__)
