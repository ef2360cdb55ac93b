"""The same training step in PyTorch, to time ours against: fused attention, fused Adam, autocast, eager.

The parameters are ours in PyTorch's layouts, by our paths. Where the two formulations are free to differ, this one does
what PyTorch's users do: LayerDrop skips the layer instead of computing it, attention gets no mask where nothing is
padded, and a gradient that is not finite is not looked for.
"""

import random
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress.address import flatten
from compress.errors import InputError
from jaxssl.inference.latency import Load, Program
from jaxssl.models.arch import FULL, Arch, CosineHead, PositionalConvolution, Waveform
from jaxssl.models.layers import NORM_EPSILON
from jaxssl.models.model import Params
from jaxssl.models.part import formed
from jaxssl.training.losses import MaskedPrediction
from jaxssl.training.optimizer import Optimizer

Weights = Mapping[str, Tensor]
THREADS = torch.get_num_threads()  # all cores, unless the user said otherwise
UNKNOWN = -100  # cross_entropy leaves out frames with this label


class Step:
    """A model, its optimiser and one batch on a device.

    Args:
        arch: dense, with an output layer.
        params: where training starts; copied.
        batch: `inputs`, `lengths`, `labels`, `mask`, as our training step takes them.
        loss: masked frames alone weigh in, by 1.
        optimizer: Adam at a constant rate.
        dtype: "float32" or "bfloat16" (autocast).
        device: as PyTorch names it.
        seed: of dropout.

    Raises:
        InputError: the arch, loss or optimiser is none that is written here.
    """

    def __init__(
        self,
        arch: Arch,
        params: Params,
        batch: Mapping[str, np.ndarray],
        *,
        loss: MaskedPrediction,
        optimizer: Optimizer | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        seed: int = 0,
    ):
        optimizer = optimizer or Optimizer()
        _check(arch, loss, optimizer)
        torch.manual_seed(seed)
        self.arch, self.loss, self.clip = arch, loss, optimizer.clip
        self.device, self.half = torch.device(device), dtype == "bfloat16"
        self.drop = random.Random(seed)
        self.weights = weights(params, device)
        self.batch = _tensors(arch, batch, device)
        rate, betas, epsilon = optimizer.learning_rate, optimizer.betas, optimizer.epsilon
        self.adam = torch.optim.Adam(self.weights.values(), lr=rate, betas=betas, eps=epsilon, fused=True)

    def value(self) -> Tensor:
        """Return the loss on the batch, dropout on."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            extracted, logits = forward(self.arch, self.weights, self.batch, self.drop)
        parts = torch.split(logits.float(), self.loss.clusters, -1)
        targets = self.batch["targets"]
        value = sum(functional.cross_entropy(part.transpose(1, 2), targets[..., i]) for i, part in enumerate(parts))
        if self.loss.penalty and extracted is not None:
            value = value + self.loss.penalty * extracted.float().pow(2).mean()
        return value

    def __call__(self) -> Tensor:
        """Update once; return the loss before it."""
        self.adam.zero_grad(set_to_none=True)
        value = self.value()
        value.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.clip)
        self.adam.step()
        return value.detach()


def prepare(
    arch: Arch, params: Params, batch: Mapping[str, np.ndarray], load: Load, *, loss: MaskedPrediction, dtype: str
) -> Program:
    """Set the step up on CUDA where there is one, else on the CPU, and run it once.

    Sets PyTorch's global switches in its favour: TF32 products for float32, as ours, and convolutions chosen by trial;
    on the CPU one thread instead of all, where that is quicker (its threads wait for the slowest on a busy machine).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
    step = Step(arch, params, batch, loss=loss, dtype=dtype, device=device)

    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    first = _seconds(run)
    if device == "cpu":
        times = {count: _seconds(run, threads=count) for count in (1, THREADS)}
        torch.set_num_threads(min(times, key=lambda count: times[count]))
    return Program(run, load, 0.0, first, torch.cuda.max_memory_allocated() if device == "cuda" else None)


def _seconds(run: Callable[[], None], *, threads: int | None = None) -> float:
    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def version() -> str:
    """Name PyTorch's version and the device it takes, for a report."""
    if torch.cuda.is_available():
        return f"{torch.__version__} on {torch.cuda.get_device_name()}"
    return f"{torch.__version__} on the CPU, threads: {torch.get_num_threads()}"


def weights(params: Params, device: str) -> dict[str, Tensor]:
    """Copy our parameters into PyTorch's layouts: (out, in) for dense maps, (out, in, taps) for convolutions."""
    found = {}
    for path, leaf in flatten(params).items():
        array = np.array(leaf, np.float32)
        if path.endswith(("conv/kernel", "position/kernel")):
            array = array.transpose(2, 1, 0)
        elif path.endswith("attention/out/kernel"):
            array = array.reshape(-1, array.shape[-1]).T
        elif path.endswith("kernel"):
            array = array.reshape(len(array), -1).T
        elif "/attention/" in path:
            array = array.reshape(-1)
        found[path] = torch.tensor(np.ascontiguousarray(array), device=device, requires_grad=True)
    return found


def forward(arch: Arch, p: Weights, batch: Mapping[str, Tensor], drop: random.Random) -> tuple[Tensor | None, Tensor]:
    """Return the extractor's raw output, None for log-Mel models, and the logits."""
    extracted, x = None, batch["inputs"]
    if isinstance(arch.front, Waveform):
        extracted = _extract(arch.front, p, x)
        x = _norm(p, "front/norm", extracted)
    valid = batch.get("valid")
    x = _embed(arch, p, x, batch["mask"], valid)
    x = x + _position(arch, p, x)
    x = _drop(x if arch.norm_first else _norm(p, "norm", x), arch.dropout.hidden)
    seen = None if valid is None else valid[:, None, None, :]
    for i in range(len(arch.layers)):
        if drop.random() >= arch.dropout.layer:
            x = _layer(arch, p, f"layers/{i}", x, seen)
    return extracted, _logits(arch, p, _norm(p, "norm", x) if arch.norm_first else x)


def _extract(front: Waveform, p: Weights, samples: Tensor) -> Tensor:
    if front.normalize:
        samples = functional.layer_norm(samples, samples.shape[-1:], eps=NORM_EPSILON)
    x = samples[:, None]
    for i, conv in enumerate(front.convs):
        path = f"front/convs/{i}"
        x = functional.conv1d(x, p[f"{path}/conv/kernel"], p.get(f"{path}/conv/bias"), stride=conv.stride)
        if front.norm == "layer":
            x = _norm(p, f"{path}/norm", x.transpose(1, 2)).transpose(1, 2)
        elif i == 0:
            x = functional.group_norm(x, x.shape[1], p[f"{path}/norm/scale"], p[f"{path}/norm/bias"], NORM_EPSILON)
        x = functional.gelu(x)
    if front.gradient_scale != 1 and x.requires_grad:
        x.register_hook(lambda gradient: front.gradient_scale * gradient)
    return x.transpose(1, 2)


def _embed(arch: Arch, p: Weights, x: Tensor, mask: Tensor, valid: Tensor | None) -> Tensor:
    if not arch.mask_embedding:
        x = x.masked_fill(mask[..., None], 0)
    x = _drop(_dense(p, "project", x), arch.dropout.features)
    if arch.mask_embedding:
        x = torch.where(mask[..., None], p["mask_embedding"].to(x.dtype), x)
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


def _position(arch: Arch, p: Weights, x: Tensor) -> Tensor:
    position = arch.position
    assert isinstance(position, PositionalConvolution)  # as `_check` saw
    taps = position.kernel
    kernel = torch._weight_norm(p["position/kernel"], p["position/gain"].reshape(1, 1, taps), 2)
    y = functional.conv1d(x.transpose(1, 2), kernel, p["position/bias"], padding=taps // 2, groups=position.groups)
    return functional.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def _layer(arch: Arch, p: Weights, path: str, x: Tensor, seen: Tensor | None) -> Tensor:
    rate, attend, feed = arch.dropout.hidden, f"{path}/attention_norm", f"{path}/ffn_norm"
    if arch.norm_first:
        x = x + _drop(_attention(arch, p, f"{path}/attention", _norm(p, attend, x), seen), rate)
        return x + _drop(_feed(arch, p, f"{path}/ffn", _norm(p, feed, x)), rate)
    x = _norm(p, attend, x + _drop(_attention(arch, p, f"{path}/attention", x, seen), rate))
    return _norm(p, feed, x + _drop(_feed(arch, p, f"{path}/ffn", x), rate))


def _attention(arch: Arch, p: Weights, path: str, x: Tensor, seen: Tensor | None) -> Tensor:
    head_dim = arch.layers[int(path.split("/")[1])].attention.head_dim
    q, k, v = (_dense(p, f"{path}/{m}", x).unflatten(-1, (-1, head_dim)).transpose(1, 2) for m in "qkv")
    context = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=arch.dropout.attention)
    return _dense(p, f"{path}/out", context.transpose(1, 2).flatten(2))


def _feed(arch: Arch, p: Weights, path: str, x: Tensor) -> Tensor:
    return _dense(p, f"{path}/fc2", _drop(functional.gelu(_dense(p, f"{path}/fc1", x)), arch.dropout.activation))


def _logits(arch: Arch, p: Weights, x: Tensor) -> Tensor:
    head, x = arch.head, _dense(p, "head/project", x)
    if not isinstance(head, CosineHead):
        return x
    sets = len(head.codewords)
    projected = functional.normalize(x.unflatten(-1, (sets if head.untied else 1, head.size)), dim=-1).unbind(-2)
    words = functional.normalize(p["head/codewords"], dim=-1).split(head.codewords)
    cosines = [functional.linear(projected[i if head.untied else 0], words[i]) for i in range(sets)]
    return torch.cat(cosines, -1) / head.temperature


def _dense(p: Weights, path: str, x: Tensor) -> Tensor:
    return functional.linear(x, p[f"{path}/kernel"], p[f"{path}/bias"])


def _norm(p: Weights, path: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], p[f"{path}/scale"], p[f"{path}/bias"], NORM_EPSILON)


def _drop(x: Tensor, rate: float) -> Tensor:
    return functional.dropout(x, rate) if rate else x


def _tensors(arch: Arch, batch: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Move a batch over, labels of frames that do not count replaced; `valid` is there where a row is padded."""
    inputs, labels, mask = batch["inputs"], batch["labels"], batch["mask"]
    labels = labels[..., None] if labels.ndim == 2 else labels
    found = {"inputs": inputs, "mask": mask}
    if (padded := batch["lengths"] < inputs.shape[1]).any():
        if isinstance(arch.front, Waveform):
            raise InputError(f"{padded.sum()} of {len(padded)} waveforms are padded; give rows of one length")
        found["valid"] = valid = np.arange(inputs.shape[1]) < batch["lengths"][:, None]
        mask = mask & valid
    counted = mask[..., None] & (labels >= 0)
    found["targets"] = np.where(counted, labels, UNKNOWN).astype(np.int64)
    return {name: torch.tensor(np.asarray(array), device=device) for name, array in found.items()}


def _check(arch: Arch, loss: MaskedPrediction, optimizer: Optimizer) -> None:
    blocks = [block for layer in arch.layers for block in layer.blocks]
    plain = all(block == formed(block, FULL) and not block.empty for block in blocks)
    if not isinstance(arch.position, PositionalConvolution):
        raise InputError(f"the PyTorch step has positions by convolution only, not by {arch.position.kind}")
    if other := [layer.ffn.activation for layer in arch.layers if layer.ffn.activation != "gelu"]:
        raise InputError(f"the PyTorch step has GELU between feed-forward maps only, not {other[0]}")
    if any(layer.adapter or layer.conformer for layer in arch.layers) or getattr(arch.front, "scaled", False):
        raise InputError("the PyTorch step has no adapters, no Conformers, and no scale of the extractor's output")
    if arch.length_adapter is not None:
        raise InputError("the PyTorch step has no length adapter behind the encoder; time a model without one")
    if arch.relative is not None:
        raise InputError("the PyTorch step has no relative positions (WavLM); time a model without them")
    if arch.front.kind == "whisper" or not all(layer.attention.key_bias for layer in arch.layers):
        raise InputError("the PyTorch step has nothing of Whisper: no such front end, and no keys without a bias")
    if arch.project not in (FULL, None) or not plain or any(layer.mixer.carries for layer in arch.layers):
        raise InputError("the PyTorch step is for dense layers only; this arch has ranks, packed maps or empty blocks")
    if arch.shortens or not (arch.project is not None and getattr(arch.front, "feature_norm", True)):
        raise InputError("the PyTorch step has no time reduction, and wants a norm of the features and a projection")
    if arch.head is None or (loss.masked, loss.unmasked) != (1.0, 0.0):
        raise InputError(f"the PyTorch step counts masked frames alone, by 1, under a head; not {loss}, {arch.head}")
    if (optimizer.kind, optimizer.warmup, optimizer.decay) != ("adam", 0, "constant"):
        raise InputError(f"the PyTorch step has Adam at a constant rate only, not {optimizer}")
