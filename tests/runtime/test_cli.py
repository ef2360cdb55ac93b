"""What every command line shares."""

import subprocess
import sys
from pathlib import Path


def test_ctrl_c_in_a_garbage_collector_callback_still_interrupts():
    """Python prints and drops what is raised there; XLA has such a callback."""
    words = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2], timeout=60)
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
    time.sleep(30)

main(run, Config, "")
"""
