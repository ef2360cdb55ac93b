"""Kill commands again and again, let them end, and compare: `python -m tests.campaign.kills SEED KILLS [COMMANDS]`.

Half of the kills come at a random moment, half at a random change of the file system. After one to four of them a
command is left alone, and must end as one that nobody killed. A line of JSON for each says so, the last one counts.
100 kills take about half an hour on two idle cores.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.lines import COMMANDS, Command, differences, ends
from tests.experiments.small import Small, make

AT_ONCE = 4  # kills of one run at most


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed: seconds, changes of the file system, what it left, and what it said on the way."""

    seconds: float
    changes: int
    ends: dict[str, Any]
    said: str


def whole(command: Command, place: Small, folder: Path, **settings: str) -> Whole:
    """Run a command twice, for the first also compiles."""
    for name in ("first", "second"):
        out = folder / name / "run"
        began = time.monotonic()
        said = _finish(command, place, out, dies=0, **settings)
        seconds = time.monotonic() - began
    one, two = (ends(folder / name) for name in ("first", "second"))
    if wrong := differences(one, two):
        raise AssertionError(f"{command.name} does not end as it ended before, unkilled: {wrong[:5]}")
    return Whole(seconds, int((folder / "second.changes").read_text()), two, said)


def _finish(command: Command, place: Small, out: Path, **words: Any) -> str:
    out.parent.mkdir(parents=True, exist_ok=True)
    with command.start(place, out, **words) as process:
        _, errors = process.communicate(timeout=600)
    if process.returncode:
        raise AssertionError(f"{command.name} ended with {process.returncode}: {errors[-2000:]}")
    return errors


def kill(
    command: Command, place: Small, out: Path, unbroken: Whole, draw: random.Random, **settings: str
) -> str | None:
    """Start a command and kill it; return when, or None where it ended before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.5:
        number = draw.randint(1, max(unbroken.changes, 1))
        with command.start(place, out, dies=number, **settings) as process:
            process.communicate(timeout=600)
        when = f"change {number}"
    else:
        wait = draw.uniform(0.2, 1) * unbroken.seconds
        with command.start(place, out, **settings) as process:
            try:
                process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        when = f"{wait:.1f} s"
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"{command.name} ended with {process.returncode} by itself")
    return when if process.returncode else None


def story(command: Command, place: Small, folder: Path, unbroken: Whole, seed: str, **settings: str) -> dict[str, Any]:
    """Kill a run some times, let it end, and compare."""
    draw = random.Random(seed)
    out, kills = folder / "run", []
    try:
        for _ in range(draw.randint(1, AT_ONCE)):
            if (when := kill(command, place, out, unbroken, draw, **settings)) is None:
                break
            kills.append(when)
        _finish(command, place, out, **settings)
        wrong = differences(ends(folder), unbroken.ends)
    except AssertionError as error:
        wrong = [str(error)]
    return {"command": command.name, "seed": seed, "kills": kills, "wrong": wrong[:8]}


def campaign(seed: str, count: int, commands: tuple[Command, ...], root: Path, tell: Any = print) -> Counter[str]:
    """Kill commands in turns until there were so many kills; count kills, runs and runs that ended otherwise."""
    place = make(root, layers=1)
    settings = {"JAX_COMPILATION_CACHE_DIR": str(root / "compiled"), "XDG_CACHE_HOME": str(root / "cache")}
    unbroken = {each.name: whole(each, place, root / f"whole-{each.name}", **settings) for each in commands}
    for name, each in unbroken.items():
        tell(json.dumps({"command": name, "seconds": round(each.seconds, 1), "changes": each.changes}), flush=True)
    counts = Counter[str]()
    number = 0
    while counts["kills"] < count:
        command = commands[number % len(commands)]
        folder, mine = root / f"story-{number}", f"{seed}/{command.name}/{number}"
        told = story(command, place, folder, unbroken[command.name], mine, **settings)
        tell(json.dumps(told), flush=True)
        counts += Counter({"kills": len(told["kills"]), "runs": 1, "wrong": bool(told["wrong"])})
        counts[f"kills of {command.name}"] += len(told["kills"])
        number += 1
    return counts


def main(seed: str, count: str, *names: str) -> int:
    chosen = tuple(each for each in COMMANDS if not names or each.name in names)
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        counts = campaign(seed, int(count), chosen, Path(root))
    print(json.dumps(counts))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
