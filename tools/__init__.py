"""Commands, started by `python -m tools.NAME`."""

from jaxssl.runtime import early

early.listen()
