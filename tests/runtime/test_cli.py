"""What every command line shares."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.processes import finish

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [f"experiments.{path.stem}" for path in sorted((ROOT / "experiments").glob("[a-z]*.py"))]
COMMANDS += ["tools.convert_torch", "tools.export"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_to_start_it_and_what_a_flag_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)  # another command or test may have imported it
    with pytest.raises(SystemExit) as left:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    lines = capsys.readouterr().out
    told = " ".join(lines.replace("│", " ").split())
    assert left.value.code == 0
    assert told.startswith(f"usage: python -m {name} ")
    assert "default: True" not in told
    assert len(re.findall(r"^[│ ]*--no-", lines, re.MULTILINE)) == told.count("(on by default; this flag turns it off)")


def test_ctrl_c_in_a_garbage_collector_callback_still_interrupts():
    """Python prints and drops what is raised there; XLA has such a callback."""
    done = finish("-c", INTERRUPTED, timeout=100)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr


INTERRUPTED = """
import gc, time
from dataclasses import dataclass
from jaxssl.runtime.cli import main

@dataclass(frozen=True)
class Config: pass

def interrupt(phase, _):
    gc.callbacks.remove(interrupt)
    raise KeyboardInterrupt

def run(_):
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(200)

main(run, Config, "")
"""
