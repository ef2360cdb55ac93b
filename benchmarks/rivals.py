"""Forward passes of one model by several programs: ours, PyTorch eager and compiled, ONNX Runtime; and our exports.

All run the same weights and waveforms, unpadded, and hand over the encoder's output. PyTorch's model is the one that
`tools.export` writes (fused attention, `inference_mode`), and "onnxruntime" runs what PyTorch's exporter makes of it.
"exported" and "int8" are what our exporter writes for ONNX Runtime instead.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxssl.convert.to_torch import state
from jaxssl.inference.latency import Load, Program, compile_forward
from jaxssl.models.arch import SAMPLE_RATE, Arch, LogMel
from jaxssl.models.arch_json import to_json
from jaxssl.models.model import Params
from tools.pytorch.formats import Given, export_onnx, onnx_int8, onnx_session

Start = Callable[[Load], Program]


@dataclass(frozen=True)
class Model:
    """A model to time, its computation in `dtype` ("float32" or "bfloat16") on this machine's best device."""

    arch: Arch
    params: Params
    dtype: str = "float32"


def starts(model: Model, names: tuple[str, ...]) -> dict[str, Start]:
    """Return what starts each system on a load."""
    known: dict[str, Callable[[Model], Start]] = {
        "ours": _ours,
        "pytorch": _eager,
        "compiled": _compiled,
        "onnxruntime": partial(_onnx, form="plain"),
        "exported": partial(_onnx, form="float32"),
        "int8": partial(_onnx, form="int8"),
    }
    return {name: known[name](model) for name in names}


def samples(load: Load) -> np.ndarray:
    """Return noise, (batch, samples)."""
    size = load.batch, round(load.seconds * SAMPLE_RATE)
    return (0.1 * np.random.default_rng(0).normal(size=size)).astype(np.float32)


def _ours(model: Model) -> Start:
    return lambda load: compile_forward(model.arch, model.params, load, dtype=jnp.dtype(model.dtype))


def _eager(model: Model) -> Start:
    run = _torch(model)
    return lambda load: _torch_program(run, load)


def _compiled(model: Model) -> Start:
    import torch

    torch._dynamo.config.recompile_limit = 1000  # each load compiles anew; beyond it PyTorch would run eagerly
    mode = "max-autotune" if torch.cuda.is_available() else None
    run = torch.compile(_torch(model), mode=mode, dynamic=False)
    return lambda load: _torch_program(run, load)


def _onnx(model: Model, *, form: str) -> Start:
    given = Given(model.arch, model.params, None)
    with tempfile.TemporaryDirectory() as folder:
        if form == "int8":
            run = onnx_int8(given, Path(folder))
        else:
            export_onnx(given, tuned=form == "float32").save(Path(folder) / "model.onnx", external_data=True)
            run = onnx_session(Path(folder) / "model.onnx")

    def start(load: Load) -> Program:
        fed, lengths = samples(load), np.full(load.batch, round(load.seconds * SAMPLE_RATE))
        return Program(lambda: _drop(run(fed, lengths)), load, 0.0, 0.0, None)

    return start


def _torch(model: Model) -> Any:
    """Return PyTorch's module on its best device, there with its quickest convolutions and, as ours, TF32 products."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

    from tools.pytorch.standalone.model import Model as Module

    module = Module(json.loads(json.dumps(to_json(model.arch))))
    module.load_state_dict({k: torch.tensor(v) for k, v in state(model.arch, model.params, None).items()})
    kind = getattr(torch, model.dtype)
    module = module.eval().to("cuda" if torch.cuda.is_available() else "cpu", kind)
    if isinstance(model.arch.front, LogMel):  # features in float32, as ours
        module.front.float()
        module.front.register_forward_hook(lambda _, __, out: (out[0].to(kind), out[1]))
    return module


def _torch_program(run: Any, load: Load) -> Program:
    import torch

    first = next(chain(run.front.parameters(), run.front.buffers()))
    fed = torch.tensor(samples(load), device=first.device, dtype=first.dtype)

    def once() -> None:
        with torch.inference_mode():
            run(fed)
        if first.is_cuda:
            torch.cuda.synchronize()

    return Program(once, load, 0.0, 0.0, None)


def _drop(_: Any) -> None:
    """Take a result that nobody wants."""
