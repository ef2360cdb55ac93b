"""Run a command that dies at its N-th change of a folder: `python -m tests.campaign.dying FOLDER N MODULE WORDS…`.

What is killed at a random moment is seldom killed between two writes, where it matters most. With N of 0 it lives, and
FOLDER.changes says how many changes there were. Those that C++ makes (TensorStore's arrays) are not among them.
"""

import atexit
import os
import runpy
import signal
import sys
from pathlib import Path

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def changes(folder: str, event: str, args: tuple) -> bool:
    """Tell whether an audit event is a change of something in a folder."""
    if event == "open":
        path, _, flags = args
        return isinstance(flags, int) and bool(flags & WRITING) and _inside(folder, path)
    if event not in CHANGES:
        return False
    where = args[-1] if isinstance(args[-1], int) and event in ("os.remove", "os.rmdir") else -1
    return _inside(folder, args[0], where)


def _inside(folder: str, path: object, where: int = -1) -> bool:
    if where >= 0:  # relative to an open folder, as shutil.rmtree does
        try:
            return os.readlink(f"/proc/self/fd/{where}").startswith(folder)
        except OSError:
            return False
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    return os.path.abspath(text).startswith(folder)


def main(folder: str, number: str, module: str, *words: str) -> None:
    folder, deadly, seen = os.path.abspath(folder), int(number), [0]

    def count(event: str, args: tuple) -> None:
        if (event == "open" or event in CHANGES) and changes(folder, event, args):
            seen[0] += 1
            if seen[0] == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    if not deadly:
        atexit.register(lambda: Path(f"{folder}.changes").write_text(str(seen[0])))
    sys.addaudithook(count)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
