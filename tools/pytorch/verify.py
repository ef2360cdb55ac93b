"""Run a checkpoint in its own framework beside ours and tell the difference, layer by layer."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.convert.conversion import Converted
from jaxssl.data import audio, logmel
from jaxssl.inference.encode import front_inputs
from jaxssl.models.arch import Arch, Waveform
from jaxssl.models.fronts.waveform import standardise
from jaxssl.models.model import apply

ALONE = ("DPHuBERT", "s3prl DistilHuBERT", "state dict")  # kinds for which no other program is called here
run = jax.jit(apply, static_argnums=0)  # hundreds of operations alone compile longer than all of them together
TOLERANCE = 1e-3  # beyond this, float32 rounding no longer explains a difference


@dataclass(frozen=True)
class Reference:
    """A model in its own framework: the stack whose layers are watched, and how to run it on one utterance."""

    encoder: Any
    run: Callable[[Any], Any]


def compare(path: Path, converted: Converted, places: Sequence[Path], *, stats: Path | None = None) -> Iterator[str]:
    """Yield one line a file and layer: the largest absolute difference between the source's framework and ours.

    Both get the same input: the waveform (normalised by us where the model wants that), or our log-Mel frames.

    Raises:
        InputError: the framework is not installed, so that nothing was verified; or a layer differs.
    """
    files = audio.find(places)
    reference, framework = _reference(path, converted.kind)
    worst = 0.0
    for file in files:
        inputs = _inputs(converted.arch, audio.read(file).samples, stats)
        ours = _ours(converted, inputs)
        for name, theirs in _watch(reference, np.array(_fed(converted.arch, inputs))).items():
            difference = float(np.abs(ours[name] - theirs[: len(ours[name])]).max())
            worst = max(worst, difference)
            yield f"{file.name}: {name} differs by at most {difference:.2e} from {framework}"
    if worst > TOLERANCE:
        raise InputError(f"{path}: the conversion differs from {framework} by {worst:.2e}, more than {TOLERANCE:.0e}")


def _inputs(arch: Arch, samples: np.ndarray, stats: Path | None) -> Any:
    """Prepare what our model reads, batch of one."""
    return front_inputs(arch, jnp.asarray(samples)[None], None, logmel.load_stats(stats) if stats else None)[0]


def _fed(arch: Arch, inputs: Any) -> Any:
    normalised = isinstance(arch.front, Waveform) and arch.front.normalize
    return standardise(inputs) if normalised else inputs


def _ours(converted: Converted, inputs: Any) -> dict[str, np.ndarray]:
    output = run(converted.arch, converted.params, inputs)
    layers = {f"layer {i}": np.asarray(hidden[0]) for i, hidden in enumerate(output.hidden[1:], 1)}
    return {**layers, "encoder output": np.asarray(output.last[0])}


def _watch(reference: Reference, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Run the source's model and catch what its layers and its encoder return, each (time, width)."""
    caught: dict[str, np.ndarray] = {}

    def catch(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, returned: Any) -> None:
            first = returned if hasattr(returned, "detach") else returned[0]
            caught[name] = first.detach().float().reshape(-1, first.shape[-1]).numpy()  # batch of one, either axis

        return hook

    torch = importlib.import_module("torch")
    modules = {f"layer {i}": layer for i, layer in enumerate(reference.encoder.layers, 1)}
    for name, module in {**modules, "encoder output": reference.encoder}.items():
        module.register_forward_hook(catch(name))
    with torch.no_grad():
        reference.run(torch.from_numpy(inputs))
    return caught


def _reference(path: Path, kind: str) -> tuple[Reference, str]:
    if kind.startswith(ALONE):
        raise InputError(f"nothing was verified: no other program is called for {kind}; the model was converted anyway")
    if kind.startswith("Hugging Face"):
        return _huggingface(path), "transformers"
    if kind.startswith("s3prl"):
        return _s3prl(path, "wav2vec2" if "wav2vec" in kind else "hubert"), "s3prl"
    if kind.startswith("MelHuBERT"):
        return _melhubert(path), "the study's code"
    return _fairseq(path), "fairseq"


def _import(name: str, framework: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"nothing was verified: {framework} is not installed ({error}); the model was converted all the same"
        ) from error


def _huggingface(path: Path) -> Reference:
    model = _import("transformers", "transformers (with PyTorch)").AutoModel.from_pretrained(path).eval()
    return Reference(model.encoder, model)


def _fairseq(path: Path) -> Reference:
    utils = _import("fairseq.checkpoint_utils", "fairseq")
    model = utils.load_model_ensemble_and_task([str(path)])[0][0].eval()
    inner = model.w2v_encoder.w2v_model if hasattr(model, "w2v_encoder") else model
    return Reference(inner.encoder, lambda wave: inner.extract_features(wave, None, mask=False))


def _s3prl(path: Path, family: str) -> Reference:
    model = _import(f"s3prl.upstream.{family}.convert", "s3prl").load_converted_model(str(path))[0].eval()
    return Reference(model.encoder, lambda wave: model.extract_features(wave, None, mask=False))


def _melhubert(path: Path) -> Reference:
    """Load by the study's own class; pruned shapes are not its own, so they fail there and say so."""
    study = _import("melhubert", "the study's MelHuBERT code")
    torch = importlib.import_module("torch")
    state = torch.load(path, map_location="cpu", weights_only=False)  # read before, and so known to be harmless
    config = state["Upstream_Config"].get("melhubert") or state["Upstream_Config"]["hubert"]
    model = study.MelHuBERTModel(study.MelHuBERTConfig(config))
    model.load_state_dict(state["model"])
    model.eval()

    def run(frames: Any) -> Any:
        return model(frames, torch.ones(frames.shape[:2]), get_hidden=True, no_pred=True)

    return Reference(model.encoder, run)
