"""Commands, started by `python -m experiments.NAME`."""

from jaxssl.runtime import early

early.listen()
