"""Whisper's encoders as CTranslate2 and OpenAI keep them, and a folder with PyTorch's `.bin`, made without either."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxssl.convert import ctranslate2
from jaxssl.models.arch import Sinusoids
from tests.convert.files import ctranslate2_file
from tests.convert.pickles import Storage, program, save_zip, tensor
from tests.fuzz import variables
from tests.fuzz.of_models import convert, pytorch
from tests.fuzz.spoil import Target, as_json, one_of

WIDTH, FFN, LAYERS, BINS, LONGEST = 24, 20, 2, 7, 30
DIMS = {"n_mels": BINS, "n_audio_ctx": LONGEST, "n_audio_state": WIDTH, "n_audio_head": 3, "n_audio_layer": LAYERS}


def whispers() -> list[Target]:
    read = partial(convert, name="tiny.pt")
    return [
        Target("ctranslate2 whisper", _ctranslate2, one_of({"model.bin": variables.damaged}), convert, 6),
        Target("ctranslate2 variables", _variables, one_of({"model.bin": variables.damaged}), _read_variables, 3),
        Target("openai whisper", _openai, one_of({"tiny.pt": pytorch}), read, 4),
    ]


def with_bin(folder: Path) -> Target:
    """A folder of transformers whose arrays are in PyTorch's file."""
    edits = {"pytorch_model.bin": pytorch, "config.json": as_json}
    return Target(f"folder with .bin {folder.name}", partial(_bin, folder), one_of(edits), convert, 4)


def _bin(source: Path, folder: Path) -> None:
    import safetensors.numpy

    for path in source.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    save_state(folder / "pytorch_model.bin", {}, arrays, None)


def save_state(path: Path, beside: dict[str, Any], arrays: dict[str, np.ndarray], name: str | None) -> None:
    """Write arrays as torch.save does: all there is, or as an entry of a dict with others beside it."""
    state, storages = {}, {}
    for number, (each, array) in enumerate(arrays.items()):
        key = str(number)
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)
        kind = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}[str(array.dtype)]
        state[each] = tensor(Storage(key, array.size, kind), 0, array.shape, strides)
        storages[key] = np.ascontiguousarray(array).tobytes()
    save_zip(path, program({**beside, name: state} if name else state), storages)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder by OpenAI's names."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (WIDTH, BINS, 3), "conv2.weight": (WIDTH, WIDTH, 3)}
    found |= dict.fromkeys(("conv1.bias", "conv2.bias", "ln_post.weight", "ln_post.bias"), (WIDTH,))
    for i in range(LAYERS):
        at = f"blocks.{i}."
        for name in ("attn.query", "attn.key", "attn.value", "attn.out"):
            found[f"{at}{name}.weight"] = (WIDTH, WIDTH)
        for name in ("attn.query", "attn.value", "attn.out", "mlp.2"):
            found[f"{at}{name}.bias"] = (WIDTH,)
        for name in ("attn_ln", "mlp_ln"):
            found |= {f"{at}{name}.weight": (WIDTH,), f"{at}{name}.bias": (WIDTH,)}
        found |= {f"{at}mlp.0.weight": (FFN, WIDTH), f"{at}mlp.0.bias": (FFN,), f"{at}mlp.2.weight": (WIDTH, FFN)}
    return found


def _encoder() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found = {name: draw.normal(0, 0.1, shape).astype(np.float16) for name, shape in _shapes().items()}
    waves = Sinusoids("halves", "float16").build(WIDTH, prepared=False, rngs=None)  # type: ignore[arg-type]
    rows = waves(np.zeros((1, LONGEST, WIDTH), np.float32), None)[0]
    return found | {"positional_embedding": np.asarray(rows).astype(np.float16)}


def _openai(folder: Path) -> None:
    arrays = {f"encoder.{name}": array for name, array in _encoder().items()}
    arrays["decoder.token_embedding.weight"] = np.zeros((9, WIDTH), np.float16)
    save_state(folder / "tiny.pt", {"dims": DIMS}, arrays, "model_state_dict")


def _ctranslate2(folder: Path) -> None:
    there = _encoder()
    leaves = {"weight": "gamma", "bias": "beta"}
    found = {f"encoder/{name.replace('.', '/')}": each for name, each in there.items() if name.startswith("conv")}
    found["encoder/position_encodings/encodings"] = there["positional_embedding"]
    found["encoder/num_heads"] = np.array(3, np.int16)
    for leaf, norm in leaves.items():
        found[f"encoder/layer_norm/{norm}"] = there[f"ln_post.{leaf}"]
        for i in range(LAYERS):
            at, to = f"blocks.{i}.", f"encoder/layer_{i}/"
            found[f"{to}self_attention/layer_norm/{norm}"] = there[f"{at}attn_ln.{leaf}"]
            found[f"{to}ffn/layer_norm/{norm}"] = there[f"{at}mlp_ln.{leaf}"]
            zeros = np.zeros(WIDTH, np.float16)
            joined = [there.get(f"{at}attn.{each}.{leaf}", zeros) for each in ("query", "key", "value")]
            found[f"{to}self_attention/linear_0/{leaf}"] = np.concatenate(joined)
            found[f"{to}self_attention/linear_1/{leaf}"] = there[f"{at}attn.out.{leaf}"]
            found[f"{to}ffn/linear_0/{leaf}"] = there[f"{at}mlp.0.{leaf}"]
            found[f"{to}ffn/linear_1/{leaf}"] = there[f"{at}mlp.2.{leaf}"]
    found["decoder/embeddings/weight"] = np.zeros((9, WIDTH), np.float16)
    (folder / "model.bin").write_bytes(ctranslate2_file(found))


def _variables(folder: Path) -> None:
    """Write a file with an array of each type."""
    arrays = {f"encoder/{kind}": np.ones((2, 3), kind) for kind in ctranslate2.DTYPES[:5]}
    arrays["decoder/embeddings/weight"] = np.ones(3, np.float32)
    (folder / "model.bin").write_bytes(ctranslate2_file(arrays))


def _read_variables(folder: Path) -> object:
    return [each.read() for each in ctranslate2.load(folder / "model.bin")[1].values()]
