"""Let the disk be full after a random number of bytes: `python -m tests.campaign.disk SEED TIMES [COMMANDS]`.

The disk is a small one in memory, in a mount namespace of its own, so that this takes a user who may make one
(`unshare --map-root-user --mount`). A command writes into it until it takes no more, and must say so in one line and
end with 2; before that line may stand a note that TensorBoard's file is not written any more. The disk is then made
larger, and the same command must end as one that always had room. A line of JSON for each says so, the last one
counts. 20 take about ten minutes on two idle cores.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.campaign.kills import whole
from tests.campaign.lines import COMMANDS, Command, differences, ends
from tests.experiments.small import Small, make

NAMESPACE = ("unshare", "--map-root-user", "--mount")
ROOM = "2g"
BLOCK = 4096


def possible() -> bool:
    """Tell whether this user may mount a disk of memory."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as place:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", place], capture_output=True).returncode == 0


def _mount(place: Path, size: str | int, *, again: bool = False) -> None:
    options = f"{'remount,' if again else ''}size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)


def _used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def lines(text: str) -> set[str]:
    """What a command said, numbers left out, which are others in every run."""
    return {re.sub(r"[\d:.,%-]+", "0", line).rstrip() for line in text.splitlines() if line.strip("━╸╺ ")}


def story(
    command: Command, place: Small, folder: Path, size: int, unbroken: dict[str, Any], said: set[str], **settings: str
) -> dict[str, Any]:
    """Fill the disk under a command, let it go on, and compare."""
    folder.mkdir()
    _mount(folder, size)
    wrong: list[str] = []
    try:
        run = folder / "story/run"
        code, errors = _ended(command, place, run, **settings)
        if code not in (0, 2):
            wrong.append(f"it ended with {code}: {errors[-1500:]}")
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        if code == 2 and (len(told) != 1 or errors.splitlines()[-1] != told[0]):
            wrong.append(f"not one line at the end: {errors[-1500:]}")
        if code == 2 and (more := lines(errors) - said - lines(told[0] if told else "")):
            wrong += [
                f"another line: {line}" for line in sorted(more)[:5] if not line.startswith("note0 TensorBoard's")
            ]
        _mount(folder, ROOM, again=True)
        code_after, after = _ended(command, place, run, **settings)
        if code_after:
            wrong.append(f"with room again it ended with {code_after}: {after[-1500:]}")
        else:
            wrong += differences(ends(folder / "story"), unbroken)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    return {"command": command.name, "bytes": size, "code": code, "said": told[:1], "wrong": wrong[:8]}


def _ended(command: Command, place: Small, out: Path, **settings: str) -> tuple[int, str]:
    out.parent.mkdir(exist_ok=True)
    with command.start(place, out, **settings) as process:
        _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def campaign(seed: str, count: int, commands: tuple[Command, ...], root: Path, tell: Any = print) -> Counter[str]:
    """Fill the disk under commands in turns until so many were told that it is full; count what came of them."""
    place = make(root, layers=1)
    settings = {"JAX_COMPILATION_CACHE_DIR": str(root / "compiled"), "XDG_CACHE_HOME": str(root / "cache")}
    unbroken, said, sizes = {}, {}, {}
    for each in commands:
        found = whole(each, place, root / f"whole-{each.name}", **settings)
        unbroken[each.name], said[each.name] = found.ends, lines(found.said)
        sizes[each.name] = _used(root / f"whole-{each.name}/second")
    counts, draw, number = Counter[str](), random.Random(seed), 0
    while counts["full"] < count:
        command = commands[number % len(commands)]
        size = draw.randrange(2 * BLOCK, sizes[command.name])
        told = story(
            command, place, root / f"disk-{number}", size, unbroken[command.name], said[command.name], **settings
        )
        tell(json.dumps(told), flush=True)
        counts += Counter({"full": told["code"] == 2, "runs": 1, "wrong": bool(told["wrong"])})
        number += 1
    return counts


def main(seed: str, count: str, *names: str) -> int:
    if os.environ.get("JAXSSL_OWN_MOUNTS") is None:
        again = [*NAMESPACE, sys.executable, "-m", "tests.campaign.disk", seed, count, *names]
        return subprocess.run(again, env={**os.environ, "JAXSSL_OWN_MOUNTS": "1"}).returncode
    chosen = tuple(each for each in COMMANDS if not names or each.name in names)
    with tempfile.TemporaryDirectory(prefix="disk-") as root:
        counts = campaign(seed, int(count), chosen, Path(root))
    print(json.dumps(counts))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
