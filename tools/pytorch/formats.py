"""Forms a model is deployed in: each writes a folder, and reads it back as a function that runs what was written."""

import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import save_file

from compress.errors import InputError
from jaxssl.convert import to_dphubert
from jaxssl.convert import to_huggingface as hugging_face
from jaxssl.convert.conversion import read
from jaxssl.convert.to_ctc import Outputs, tokenizer, with_ctc
from jaxssl.convert.to_torch import state
from jaxssl.data.logmel import WINDOW, Stats
from jaxssl.inference.encode import encode
from jaxssl.models.arch import SAMPLE_RATE, Arch, Whisper
from jaxssl.models.arch_json import to_json
from jaxssl.models.fronts.waveform import standardise
from jaxssl.models.model import Params, apply
from tools.pytorch.one_file import one_file

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]  # samples (batch, samples), lengths (batch,) → encoder output
STANDALONE = Path(__file__).parent / "standalone"
MODULES = ("fronts", "blocks", "mixers", "positions", "rates", "model")  # which go out as one file
OPSET = 20
PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True)
class Given:
    """A model to deploy.

    Attributes:
        arch: what it is.
        params: its parameters.
        stats: of its log-Mel features.
        ctc: the output layer that it was fine-tuned with, or None.
        chunk: milliseconds that a form that streams takes at once.
    """

    arch: Arch
    params: Params
    stats: Stats | None
    ctc: Outputs | None = None
    chunk: float = 320.0

    @cached_property
    def graph(self) -> Any:
        """The model as PyTorch's exporter writes it, in what ONNX Runtime runs faster; made once for all forms."""
        return export_onnx(self)

    def forward(self, samples: Array, lengths: Array) -> tuple[Array, Array]:
        """Return the model's output, (batch, frames, width), and the valid frames of each row."""
        out = encode(self.arch, self.params, samples, lengths, stats=self.stats)
        return out.end


def torch(given: Given, folder: Path) -> Run:
    """Write a PyTorch module of one file, its weights, and s3prl's view of it."""
    import torch

    _write_torch(given, folder)
    model = written(folder).load(folder)

    def run(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(samples), torch.from_numpy(lengths))["last"].numpy()

    return run


def onnx(given: Given, folder: Path) -> Run:
    """Write an ONNX graph of samples and lengths, both of any size, in float32."""
    given.graph.save(folder / "model.onnx", external_data=True)
    return onnx_session(folder / "model.onnx")


def onnx_int8(given: Given, folder: Path) -> Run:
    """Write an ONNX graph whose linear maps are int8: weights by output channel, activations as they come."""
    import onnx as library
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = folder / "float32.onnx"
    given.graph.save(whole, external_data=False)
    nodes = library.load(whole, load_external_data=False).graph.node
    kept = [node.name for node in nodes if any(name.startswith("model.front.") for name in node.input)]
    with _quiet():
        quantize_dynamic(
            whole,
            folder / "model.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=kept,  # filters of energies that differ by ten powers of ten
        )
    whole.unlink()
    return onnx_session(folder / "model.onnx")


def onnx_stream(given: Given, folder: Path) -> Run:
    """Write an ONNX graph of a chunk and a state, of one stream; read back, it runs rows one after another."""
    from tools.graphs import stream_model

    return stream_model.form(given.arch, given.params, given.stats, folder, ms=given.chunk)


def stablehlo(given: Given, folder: Path) -> Run:
    """Write a serialised JAX program of samples and lengths, both of any size, weights included."""
    most = given.arch.front.most
    limits = [f"samples >= {_shortest(given.arch)}", *([] if most is None else [f"samples <= {most}"])]
    size, count = jax.export.symbolic_shape("batch, samples", constraints=limits)
    shapes = jax.ShapeDtypeStruct((size, count), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)
    exported = jax.export.export(jax.jit(given.forward), platforms=PLATFORMS)(*shapes)
    (folder / "model.jax").write_bytes(exported.serialize())
    (folder / "README.txt").write_text(
        "last, frames = jax.export.deserialize(open('model.jax', 'rb').read()).call(samples, lengths)\n"
    )
    program = jax.jit(jax.export.deserialize(bytearray((folder / "model.jax").read_bytes())).call)
    return lambda samples, lengths: np.asarray(program(samples, lengths.astype(np.int32))[0])


def huggingface(given: Given, folder: Path) -> Run:
    """Write what `from_pretrained` of transformers' classes reads, with the CTC layer, where one can be the model."""
    config, features, tensors = hugging_face.folder(given.arch, given.params)
    if given.ctc:
        config, tensors = with_ctc(config, tensors, given.ctc)
        _write_json(folder, tokenizer(given.ctc))
    _write_json(folder, {"config.json": config, "preprocessor_config.json": features})
    _write_tensors(tensors, folder)

    from transformers import AutoModel

    with _quiet():  # of a Whisper's decoder, which is not there
        model = AutoModel.from_pretrained(folder).eval()
    return _listening(model, folder) if isinstance(given.arch.front, Whisper) else _rows(model, features)


def _rows(model: Any, features: Mapping[str, Any]) -> Run:
    """Run one of transformers' models on waveforms.

    Row by row: in a padded batch it lets the padding into the group norm. And normalised as fairseq does, which adds
    1e-5 to the variance; transformers' own extractor adds 1e-7.
    """
    import torch

    def run(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        found = []
        for row, count in zip(samples, lengths.tolist(), strict=True):
            fed = standardise(jnp.asarray(row[None, :count])) if features["do_normalize"] else row[None, :count]
            with torch.inference_mode():
                found.append(model(torch.tensor(np.asarray(fed))).last_hidden_state[0].numpy())
        most = max(map(len, found))
        return np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in found])

    return run


def _listening(model: Any, folder: Path) -> Run:
    """Run transformers' Whisper on waveforms, all of which it hears with silence up to its 30 s."""
    import torch
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(folder)

    def run(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows = [row[:count] for row, count in zip(samples, lengths.tolist(), strict=True)]
        heard = extractor(rows, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.inference_mode():
            return model.get_encoder()(heard).last_hidden_state.numpy()

    return run


def heard(name: str, given: Given, samples: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch that a form hears when it is given this one: transformers' Whisper hears silence to its end."""
    if name != "huggingface" or not isinstance(given.arch.front, Whisper):
        return samples, lengths
    whole = given.arch.front.longest * given.arch.front.hop
    silenced = np.where(np.arange(samples.shape[1]) < lengths[:, None], samples, 0)[:, :whole]
    padded = np.pad(silenced, ((0, 0), (0, whole - silenced.shape[1])))
    return padded, np.full_like(lengths, whole)


def dphubert(given: Given, folder: Path) -> Run:
    """Write the `.pth` that DPHuBERT's code and s3prl's upstream of it read; our converter reads it back."""
    import torch

    arrays, config = to_dphubert.state(given.arch, given.params)
    torch.save(
        {"state_dict": {name: torch.tensor(each) for name, each in arrays.items()}, "config": config},
        folder / "model.pth",
    )
    back = read(folder / "model.pth")
    program = jax.jit(lambda samples, lengths: apply(back.arch, back.params, samples, lengths).last)
    return lambda samples, lengths: np.asarray(program(samples, lengths.astype(np.int32)))


def huggingface_code(given: Given, folder: Path) -> Run:
    """Write what `AutoModel.from_pretrained(…, trust_remote_code=True)` reads, the model's code included."""
    config: dict[str, Any] = {
        "model_type": "jaxssl-speech",
        "architectures": ["SpeechForCTC" if given.ctc else "SpeechModel"],
        "auto_map": {"AutoConfig": "modeling.SpeechConfig", "AutoModel": "modeling.SpeechModel"},
        "hidden_size": given.arch.width,
        "num_hidden_layers": len(given.arch.layers),
        "arch": _described(given),
    }
    if given.ctc:
        config["auto_map"] |= {"AutoModelForCTC": "modeling.SpeechForCTC"}
        config |= {"vocab_size": len(given.ctc.bias), "pad_token_id": given.ctc.blank}
        _write_json(folder, tokenizer(given.ctc))
    features = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000}
    features |= {"do_normalize": False, "return_attention_mask": True, "padding_value": 0.0}
    _write_json(folder, {"config.json": config, "preprocessor_config.json": features})
    _write_tensors({f"encoder.{name}": array for name, array in _state(given).items()}, folder)
    _write_module(folder, "modeling.py")

    import torch
    from transformers import AutoModel

    with _quiet():
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()

    def run(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        mask = torch.arange(samples.shape[1])[None] < torch.from_numpy(lengths)[:, None]
        with torch.inference_mode():
            return model(torch.from_numpy(samples), mask).last_hidden_state.numpy()

    return run


def _described(given: Given) -> dict[str, Any]:
    """Return what the standalone module is made from."""
    return to_json(given.arch) | ({"ctc": given.ctc.told()} if given.ctc else {})


def _state(given: Given) -> dict[str, np.ndarray]:
    """Return the standalone module's arrays."""
    arrays = state(given.arch, given.params, given.stats)
    return arrays | ({"ctc.weight": given.ctc.weight, "ctc.bias": given.ctc.bias} if given.ctc else {})


def _write_json(folder: Path, files: Mapping[str, Any]) -> None:
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_torch(given: Given, folder: Path) -> None:
    _write_json(folder, {"config.json": _described(given)})
    _write_tensors(_state(given), folder)
    _write_module(folder, "expert.py", "hubconf.py")


def _write_module(folder: Path, *beside: str) -> None:
    """Write the standalone module as one file, and what stands beside it."""
    (folder / "model.py").write_text(one_file([STANDALONE / f"{name}.py" for name in MODULES]))
    for name in beside:
        shutil.copy(STANDALONE / name, folder / name)


def written(folder: Path) -> Any:
    """Read the module that was written, as its user will."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_tensors(tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write model.safetensors as transformers and PyTorch read it, readable for all as the files beside it are."""
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def export_onnx(given: Given, *, tuned: bool = True) -> Any:
    """Make an ONNX graph by PyTorch's exporter; its `save` writes it.

    `tuned`: in what ONNX Runtime runs faster (`tools.pytorch.onnx_model`), else as the exporter makes it.
    """
    import torch

    from tools.pytorch.onnx_model import faster, unfused
    from tools.pytorch.standalone import model as standalone

    class Last(torch.nn.Module):
        """What a deployed model returns: two tensors, and logits where it has a CTC layer."""

        def __init__(self, model: Any):
            super().__init__()
            self.model = model

        def forward(self, samples: Any, lengths: Any) -> tuple[Any, ...]:
            out = self.model(samples, lengths)
            return tuple(out[name] for name in ("last", "lengths", "logits") if name in out)

    with tempfile.TemporaryDirectory() as folder:
        _write_torch(given, Path(folder))
        plain = standalone.load(folder)
        model = Last(faster(plain) if tuned else plain).eval()
    dim, most = torch.export.Dim, given.arch.front.most
    # Without a name the exporter writes no bounds of what is counted from samples: of frames that are divided twice, by
    # a length adapter or in groups, it finds such as no number can meet.
    count = dim.DYNAMIC if most is None else dim("samples", min=_shortest(given.arch), max=most)
    example = torch.zeros(2, 16_000), torch.tensor([16_000, 12_000])
    with _quiet():
        program = torch.onnx.export(
            model,
            example,
            input_names=["samples", "lengths"],
            output_names=["last", "frames", *["logits"] * (given.ctc is not None)],
            dynamic_shapes=({0: dim.DYNAMIC, 1: count}, {0: dim.DYNAMIC}),
            opset_version=OPSET,
            verbose=False,
        )
    if tuned:
        unfused(program.model.graph)
    return program


def onnx_session(path: Path) -> Run:
    """Read a graph of `export_onnx`, once saved, to run on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda samples, lengths: session.run(["last"], {"samples": samples, "lengths": lengths.astype(np.int64)})[0]


def _shortest(arch: Arch) -> int:
    """Return samples of one frame."""
    samples = WINDOW
    while arch.front.frames(samples) < arch.least:
        samples += 1
    return samples


class _quiet(warnings.catch_warnings):
    """Keep exporters' remarks on their own insides from the user."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        return found

    def __exit__(self, *error: Any) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*error)


FORMATS: dict[str, Callable[[Given, Path], Run]] = {
    "torch": torch,
    "onnx": onnx,
    "onnx-int8": onnx_int8,
    "onnx-stream": onnx_stream,
    "stablehlo": stablehlo,
    "huggingface": huggingface,
    "huggingface-code": huggingface_code,
    "dphubert": dphubert,
}
NEEDS = {
    "torch": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "onnx-stream": ("onnx", "onnxruntime"),
    "huggingface": ("torch", "transformers"),
    "huggingface-code": ("torch", "transformers"),
    "dphubert": ("torch",),
}
NEEDS["onnx-int8"] = NEEDS["onnx"]


def check_installed(name: str) -> None:
    """Refuse a form whose programs are not there.

    Raises:
        InputError: naming them.
    """
    if missing := [need for need in NEEDS.get(name, ()) if importlib.util.find_spec(need) is None]:
        raise InputError(f"--format {name}: needs {', '.join(missing)}; pip install {' '.join(missing)}")
