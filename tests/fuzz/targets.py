"""Everything that reads a file, or words, of somebody else: what it is given when all is well, and what reads it.

A target makes its files once for a process; `spoil` then writes damaged ones in their place, and `read` reads them.
"""

from pathlib import Path

from tests.fuzz import of_models, of_runs, of_speech, of_states, of_whisper
from tests.fuzz.spoil import Target


def targets(data: Path | None) -> list[Target]:
    """List the targets; those of foreign checkpoints only where `data` has them."""
    found = of_whisper.whispers()
    if data is not None:
        found += [*of_models.checkpoints(data), *of_models.folders(data)]
        found += [of_whisper.with_bin(folder) for folder in (data / "encoders/hf_wav2vec2_base",) if folder.is_dir()]
    found += [*of_models.models(), *of_speech.tables(), *of_speech.speech(), *of_states.states()]
    return [*found, *of_runs.runs(), *of_runs.arrays(), *of_runs.commands()]
