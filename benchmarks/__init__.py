"""Commands, started by `python -m benchmarks.NAME`."""

from jaxssl.runtime import early

early.listen()
