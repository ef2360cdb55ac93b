"""Count how many of a Whisper encoder's transcripts are those of faster-whisper, and how far its outputs are.

    python -m experiments.agreement
    python -m experiments.agreement --audio FOLDER FOLDER --limit 100

The encoder of a folder of CTranslate2's, Whisper tiny.en by default, is converted and runs here; the decoder is
CTranslate2's. Beside it faster-whisper itself writes down the same speech, with its own log-Mel and encoder, greedily.
Both come by pip install '.[real]'.

What stands behind an utterance that is shorter than 30 s is not the same everywhere. OpenAI's program and transformers
put zeros behind the samples, so that Whisper hears silence, as it was trained; faster-whisper puts zeros behind the
log-Mel, which Whisper hears as a steady noise. Both are tried: with the second, transcripts should be equal but for
rounding, and the share that is unequal with the first is what that choice changes. Longer utterances are left out.

The error of the encoder is that of its output beside CTranslate2's, ‖ours − theirs‖ / ‖theirs‖, with zeros behind the
log-Mel; both compute in float32. On two CPU cores an utterance takes two seconds.

    report.json   counts for each place, and every utterance whose transcripts differ
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from experiments.reports import tables
from experiments.transcripts.decoder import Decoder, open_decoder, published
from experiments.transcripts.faster_whisper import FasterWhisper, open_faster_whisper
from experiments.transcripts.hearing import Listener, Silence, Window, hear_all, listener, whole, window
from experiments.transcripts.spoken import Spoken, gather
from jaxssl.inference.latency import machine
from jaxssl.inference.source import in_float, load_model
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import Count, There

SILENCES: tuple[Silence, ...] = get_args(Silence)
COLUMNS = {
    "speech": "speech",
    "utterances": "utterances",
    "features": "equal, zeros behind log-Mel",
    "features_share:.1%": "of all",
    "waveform": "equal, zeros behind samples",
    "waveform_share:.1%": "of all",
    "error:.1e": "error of the encoder",
    "largest:.1e": "worst utterance",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare a Whisper encoder's transcripts with faster-whisper's."""

    model: There[Path | None] = None
    """folder of CTranslate2's; default: tiny.en of the extra `real`"""
    audio: There[tuple[str, ...]] = ()
    """speech: files, folders, .tsv manifests, each counted on its own; default: the embedded corpus"""
    limit: Count[int] = 60
    """utterances of each, spread evenly"""
    out: Path = Path("runs/agreement")
    """folder of the report"""


@dataclass(frozen=True)
class Bench:
    """What utterances are written down with.

    Attributes:
        window: 30 s.
        ours: the converted encoder, by what stands behind an utterance.
        decoder: CTranslate2's.
        theirs: faster-whisper.
    """

    window: Window
    ours: dict[Silence, Listener]
    decoder: Decoder
    theirs: FasterWhisper


def run(config: Config) -> None:
    """Carry out the experiment."""
    ranges.check(config)
    folder = config.model or published()
    decoder = open_decoder(folder)
    theirs = open_faster_whisper(folder, prompt=len(decoder.prompt))
    model = in_float(load_model(str(folder), seed=0))
    files.claim(config.out)
    seconds = whole(model.arch) / model.arch.front.rate
    gathered = {
        place: gather((place,) if place else (), (), limit=config.limit, longest=seconds)
        for place in config.audio or ("",)
    }
    files.own(config.out, config)
    full = window(model.arch, None)
    ours = {each: listener(model.arch, model.params, full.whole, each) for each in SILENCES}
    bench = Bench(full, ours, decoder, theirs)
    rows, unlike = list[dict[str, Any]](), list[dict[str, str]]()
    for place, (spoken, notes) in gathered.items():
        for note in notes:
            console.print(f"note: {note}", markup=False)
        row, different = compared(bench, spoken)
        rows.append({"speech": Path(place).name or "embedded corpus", **row})
        unlike += different
    rows = [*rows, together(rows)] if len(rows) > 1 else rows
    name = model.name if config.model else "tiny.en"
    tables.show(f"{name}: transcripts equal to faster-whisper's", rows, COLUMNS)
    for each in unlike:
        if each["theirs"] != each["features"]:
            console.print(
                f"unequal: {each['id']}\n  theirs {each['theirs']}\n  ours   {each['features']}", markup=False
            )
    report = {"model": name, "machine": machine(jnp.float32), "places": rows, "unequal": unlike}
    files.write_json(config.out / "report.json", report)
    console.print(f"wrote {config.out}: report.json", markup=False)


def compared(bench: Bench, spoken: Sequence[Spoken]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Write down utterances in all ways; return the counts, and the texts of those of which not all are equal."""
    theirs = [bench.theirs.write(each.samples) for each in follow(spoken, "faster-whisper", total=len(spoken))]
    texts = {silence: written(bench, spoken, silence) for silence in SILENCES}
    errors = [error(bench, each.samples) for each in follow(spoken, "encoders", total=len(spoken))]
    found: dict[str, Any] = {"utterances": len(spoken)}
    for silence, mine in texts.items():
        found[silence] = sum(one.strip() == other.strip() for one, other in zip(mine, theirs, strict=True))
        found[f"{silence}_share"] = found[silence] / len(spoken)
    found |= {"error": float(np.sqrt(np.mean(np.square(errors)))), "largest": max(errors)}
    lines = [
        {"id": each.id, "theirs": said, **{silence: mine[i] for silence, mine in texts.items()}}
        for i, (each, said) in enumerate(zip(spoken, theirs, strict=True))
    ]
    return found, [line for line in lines if len({text.strip() for key, text in line.items() if key != "id"}) > 1]


def written(bench: Bench, spoken: Sequence[Spoken], silence: Silence) -> list[str]:
    """Write down utterances by our encoder and CTranslate2's decoder."""
    texts = [""] * len(spoken)
    with progress(f"zeros behind {silence}", len(spoken)) as tick:
        for numbers, frames in hear_all({bench.window.whole: bench.ours[silence]}, spoken, bench.window):
            for number, text in zip(numbers, bench.decoder.write(frames), strict=True):
                texts[number] = text
                tick()
    return texts


def error(bench: Bench, samples: np.ndarray) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖ of the encoder's output."""
    theirs = bench.theirs.encode(samples)
    return float(np.linalg.norm(bench.ours["features"].hear(samples) - theirs) / np.linalg.norm(theirs))


def together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up places."""
    count = sum(row["utterances"] for row in rows)
    found: dict[str, Any] = {"speech": "all", "utterances": count}
    for silence in SILENCES:
        found[silence] = sum(row[silence] for row in rows)
        found[f"{silence}_share"] = found[silence] / count
    power = sum(row["utterances"] * row["error"] ** 2 for row in rows)
    return {**found, "error": float(np.sqrt(power / count)), "largest": max(row["largest"] for row in rows)}


if __name__ == "__main__":
    main(run, Config, __doc__)
