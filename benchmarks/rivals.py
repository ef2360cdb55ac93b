"""Forward passes of one model by several programs: ours, PyTorch, ONNX Runtime, OpenVINO; each as fast as it knows how.

All run the same weights and waveforms, unpadded, and hand over the encoder's output. A process of ours writes what the
others read (`write`), so that JAX computes nothing in theirs. PyTorch's model is the one that `tools.export` writes
(fused attention, `inference_mode`); "onnxruntime" runs what PyTorch's exporter makes of it, "exported" what our
exporter writes for ONNX Runtime instead.

system       float32                        bfloat16                         int8
-----------  -----------------------------  -------------------------------  ---------------------------------------
ours         prepared                       prepared                         dense maps, the rest in bfloat16 where
                                                                             the processor has it (`choice`)
convolutions                                                                 the same, and the convolutions of samples
exported     our ONNX file
pytorch      eager                          its weights rounded              its linear maps, quantised as they run
autocast                                    eager under autocast
compiled     torch.compile, frozen; on a    the same
             GPU max-autotune
autotuned    frozen, max-autotune           the same
transformers its own model, fused attention its weights rounded
onnxruntime  plain ONNX file                has no products of it on CPUs    our ONNX file, by its own quantiser
openvino     the faster of both ONNX files  the same with that hint          what ONNX Runtime's quantiser wrote
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.convert.to_torch import state
from jaxssl.inference.latency import Load, Program, compile_forward
from jaxssl.inference.specialise import quantized
from jaxssl.models import choice
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.arch_json import to_json
from jaxssl.models.model import Params
from tools.pytorch.formats import Given, export_onnx, huggingface, onnx_int8, onnx_session
from tools.pytorch.formats import torch as write_torch

Start = Callable[[Load], Program]
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
FILES: dict[
    str, dict[str, tuple[str, ...]]
] = {  # of each system in each dtype that it knows: what it reads; ours makes its own weights
    "ours": {FLOAT32: (), BFLOAT16: (), INT8: ()},
    "convolutions": {INT8: ()},
    "exported": {FLOAT32: ("tuned",)},
    "pytorch": {FLOAT32: ("torch",), BFLOAT16: ("torch",), INT8: ("torch",)},
    "autocast": {BFLOAT16: ("torch",)},
    "compiled": {FLOAT32: ("torch",), BFLOAT16: ("torch",)},
    "autotuned": {FLOAT32: ("torch",), BFLOAT16: ("torch",)},
    "transformers": {FLOAT32: ("huggingface",), BFLOAT16: ("huggingface",)},
    "onnxruntime": {FLOAT32: ("plain",), INT8: ("int8",)},
    "openvino": {FLOAT32: ("plain", "tuned"), BFLOAT16: ("plain", "tuned"), INT8: ("int8",)},
}
PRECISIONS = {FLOAT32: ("f32",), BFLOAT16: ("bf16",), INT8: ("f32", "bf16")}  # of OpenVINO's other operations


def write(arch: Arch, params: Params, forms: Sequence[str], folder: Path) -> None:
    """Write a model in some forms, each into a folder of its name: "torch", "huggingface", "plain", "tuned", "int8"."""
    given = Given(arch, params, None)
    ways: dict[str, Callable[[Path], Any]] = {
        "torch": lambda place: write_torch(given, place),
        "huggingface": lambda place: huggingface(given, place),
        "plain": lambda place: export_onnx(given, tuned=False).save(place / "model.onnx", external_data=True),
        "tuned": lambda place: given.graph.save(place / "model.onnx", external_data=True),
        "int8": lambda place: onnx_int8(given, place),
    }
    for form in forms:
        place = folder / form
        place.mkdir()
        ways[form](place)


def start(system: str, dtype: str, folder: Path, *, logmel: bool) -> Start:
    """Return what starts a system other than ours on a load.

    Args:
        system: one of `FILES`.
        dtype: that it knows there.
        folder: that `write` wrote to.
        logmel: whether the model takes features; they stay in float32, as ours.
    """
    match system:
        case "pytorch" | "autocast" | "compiled" | "autotuned":
            from tools.pytorch.standalone.model import load as read

            return pytorch(read(folder / "torch"), system, dtype, logmel=logmel)
        case "transformers":
            return _transformers(folder / "huggingface", dtype)
        case "openvino":
            return _openvino([folder / form for form in FILES[system][dtype]], dtype)
    return _onnx(folder / FILES[system][dtype][0])


def samples(load: Load) -> np.ndarray:
    """Return noise, (batch, samples)."""
    size = load.batch, round(load.seconds * SAMPLE_RATE)
    return (0.1 * np.random.default_rng(0).normal(size=size)).astype(np.float32)


def ours(arch: Arch, params: Params, dtype: str, *, convolutions: bool = False) -> Start:
    """Return what starts ours; "int8" is of the dense maps, and of the convolutions if asked, the rest is `quickest`.

    Raises:
        InputError: there are no convolutions that can be int8.
    """
    if convolutions and not arch.front.convolutions():
        raise InputError("its front end has no convolutions of samples")
    if dtype == INT8:
        arch, params, dtype = *quantized(arch, params, convolutions=convolutions), choice.quickest()[0]
    return lambda load: compile_forward(arch, params, load, dtype=jnp.dtype(dtype))


def module(arch: Arch, params: Params) -> Any:
    """Return PyTorch's module of a model, without a file between."""
    import torch

    from tools.pytorch.standalone.model import Model as Module

    found = Module(json.loads(json.dumps(to_json(arch))))
    found.load_state_dict({k: torch.tensor(v) for k, v in state(arch, params, None).items()})
    return found


def pytorch(module: Any, system: str, dtype: str, *, logmel: bool) -> Start:
    """Return what starts PyTorch on its best device, there with its quickest convolutions and, as ours, TF32 products.

    Args:
        module: in float32.
        system: "pytorch", "autocast", "compiled" or "autotuned".
        dtype: of the computation.
        logmel: whether the model takes features; they stay in float32, as ours.
    """
    import torch

    cuda = _cuda()
    module = module.eval().to("cuda" if cuda else "cpu")
    if dtype == INT8:
        with warnings.catch_warnings(action="ignore"):  # torchao is to follow it, on GPUs first
            module = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)
    elif dtype == BFLOAT16 and system != "autocast":
        module = module.to(torch.bfloat16)
        if logmel:
            module.front.float()
            module.front.register_forward_hook(lambda _, __, out: (out[0].to(torch.bfloat16), out[1]))
    if system in ("compiled", "autotuned"):
        torch._dynamo.config.recompile_limit = 1000  # each load compiles anew; beyond it PyTorch would run eagerly
        torch._inductor.config.freezing = not cuda  # weights become constants, in the layout that their products like
        tuned = cuda or system == "autotuned"
        module = torch.compile(module, mode="max-autotune" if tuned else None, dynamic=False)
    first = next(chain(module.front.parameters(), module.front.buffers()))
    return lambda load: _torch_program(module, first, load, autocast=system == "autocast")


def _cuda() -> bool:
    """Tell whether PyTorch has a GPU, set to its quickest convolutions and to TF32 products, as ours."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return torch.cuda.is_available()


def _transformers(folder: Path, dtype: str) -> Start:
    """Return what starts the class of transformers that a model is one of, with its fused attention."""
    import torch
    from transformers import AutoModel

    if not (folder / "config.json").exists():
        raise InputError("no class of transformers can be this model")
    device = "cuda" if _cuda() else "cpu"
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval().to(device)
    return lambda load: _torch_program(model, next(model.parameters()), load)


def _torch_program(run: Any, first: Any, load: Load, *, autocast: bool = False) -> Program:
    """Return a pass over samples that are on the device of an array, and of its type."""
    import torch

    fed = torch.tensor(samples(load), device=first.device, dtype=first.dtype)

    def once() -> None:
        with torch.inference_mode(), torch.autocast(fed.device.type, torch.bfloat16, enabled=autocast):
            run(fed)
        if first.is_cuda:
            torch.cuda.synchronize()

    return Program(once, load, 0.0, 0.0, None)


def _onnx(folder: Path) -> Start:
    run = onnx_session(folder / "model.onnx")

    def begin(load: Load) -> Program:
        fed, lengths = samples(load), _lengths(load)
        return Program(lambda: _drop(run(fed, lengths)), load, 0.0, 0.0, None)

    return begin


def _openvino(folders: Sequence[Path], dtype: str) -> Start:
    import openvino

    core = openvino.Core()

    def begin(load: Load) -> Program:
        fed = {"samples": samples(load), "lengths": _lengths(load)}

        def program(folder: Path, precision: str) -> Program:
            read = core.read_model(folder / "model.onnx")
            read.reshape({name: list(array.shape) for name, array in fed.items()})
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
            request = core.compile_model(read, "CPU", hints).create_infer_request()
            return Program(lambda: _drop(request.infer(fed)), load, 0.0, 0.0, None)

        return fastest(program(folder, precision) for folder, precision in product(folders, PRECISIONS[dtype]))

    return begin


def fastest(programs: Iterator[Program]) -> Program:
    """Return the program whose quickest of three runs is the quickest, after one to warm up; drop the others."""
    best, least = None, np.inf
    for program in programs:
        program.run()
        for _ in range(3):
            begin = time.perf_counter()
            program.run()
            if (took := time.perf_counter() - begin) < least:
                best, least = program, took
    assert best is not None
    return best


def _lengths(load: Load) -> np.ndarray:
    return np.full(load.batch, round(load.seconds * SAMPLE_RATE))


def _drop(_: Any) -> None:
    """Take a result that nobody wants."""
