"""The settings of every command, found without running any."""

import importlib
import runpy
import sys
from functools import lru_cache

import pytest

from jaxssl.runtime import cli


@lru_cache
def settings_of(name):
    """Return the settings of a command, a dataclass."""
    if name.startswith("tools."):  # these call `command` themselves
        return importlib.import_module(name).Options
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "main", lambda _, config, *__, **___: found.append(config))
        patch.setattr(sys, "argv", [name])
        patch.delitem(sys.modules, name, raising=False)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return found[0]
