"""The names a checkpoint's pickle may use, and the inert class that stands for each.

Nothing that a pickle names is ever imported. What programs pickled beside a model (configurations, dictionaries,
schedulers, numpy values), of modules that need not be there, becomes `Inert`: it keeps what it is given and does
nothing. Of Python's own names and PyTorch's, what is on no list here is refused: no checkpoint needs it, and a file
that asks for it may mean harm.
"""

import pickle
import re
import sys
from collections.abc import Iterable
from typing import Any, Never

import ml_dtypes
import numpy as np

from jaxssl.convert.storages import Storage, Tensor


class Frozen(type):
    """A class that a pickle cannot write into."""

    def __setattr__(cls, name: str, value: object) -> Never:
        raise pickle.UnpicklingError(f"the pickle tries to change the class {cls.__name__}")


class Inert(metaclass=Frozen):
    """Any object whose class is not wanted here."""

    def __new__(cls, *args: object) -> "Inert":
        self = object.__new__(cls)
        vars(self)["args"] = args
        return self

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            vars(self).update(state)

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


class PlainDict(dict[Any, Any], metaclass=Frozen):
    """A dict of any class (OrderedDict, defaultdict): its entries without its habits."""

    def __init__(self, *args: object):
        super().__init__(args[0] if args and isinstance(args[0], list) else ())

    def __setstate__(self, state: object) -> None: ...


class Size(tuple[int, ...], metaclass=Frozen):
    """`torch.Size`."""

    def __setstate__(self, state: object) -> None: ...


class Encoded(metaclass=Frozen):
    """`_codecs.encode`, which is how bytes travel in protocol 2."""

    def __new__(cls, text: object, codec: object = "latin1") -> Any:
        if not isinstance(text, str) or codec not in ("latin1", "utf-8"):
            raise pickle.UnpicklingError(f"_codecs.encode with {str(codec)[:20]}")
        return text.encode(str(codec))


class StorageType(metaclass=Frozen):
    """`torch.FloatStorage` and its like."""

    dtype: np.dtype


class RebuildTensor(metaclass=Frozen):
    """`torch._utils._rebuild_tensor_v2`: a tensor is a window on a storage."""

    def __new__(cls, storage: object, offset: object, shape: object, strides: object, *rest: object) -> Any:
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return Tensor(storage, count(offset), _counts(shape), _counts(strides))


class RebuildParameter(metaclass=Frozen):
    """`torch._utils._rebuild_parameter`: the tensor itself."""

    def __new__(cls, data: object, *rest: object) -> Any:
        return data


def find(module: str, name: str) -> type | None:
    """Return what stands for a name, or None where it is not allowed."""
    if allowed := _ALLOWED.get((module, name)):
        return allowed
    package = module.split(".")[0]
    inert = (
        (package not in _CAPABLE and not package.startswith("_"))
        or package in _DATA
        or module.startswith("torch.optim")  # schedulers and optimisers
        or (module in ("builtins", "__builtin__") and _BUILTIN_TYPES.fullmatch(name))
        or (module == "torch" and _TORCH_DTYPES.fullmatch(name))
    )
    return Inert if inert else None


def entries(config: object) -> dict[str, Any]:
    """List what one level of a configuration holds: a dict, a Namespace, a dataclass or omegaconf's DictConfig.

    One level at a time, because a hostile pickle can nest without end. What is no mapping holds nothing.
    """
    if isinstance(config, Inert):
        held = vars(config)
        config = held.get("_content", {key: value for key, value in held.items() if key != "args"})
    if not isinstance(config, dict):
        return {}
    return {str(key): leaf(value) for key, value in config.items()}


def leaf(value: object) -> Any:
    """Unwrap omegaconf's node or an enum's member; anything else stays as it is."""
    for _ in range(4):
        if not isinstance(value, Inert):
            break
        held = vars(value)
        if "_val" in held:
            value = held["_val"]
        elif len(held) == 1 and isinstance(held.get("args"), tuple) and len(held["args"]) == 1:
            value = held["args"][0]
    return value


def count(value: object) -> int:
    """Return a size as it is, or raise UnpicklingError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise pickle.UnpicklingError(f"{str(value)[:40]} where a count belongs")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise pickle.UnpicklingError(f"{type(values).__name__} where a shape belongs")
    return tuple(count(value) for value in values)


def _storage_type(name: str, dtype: Any) -> type:
    return Frozen(name, (StorageType,), {"dtype": np.dtype(dtype)})


def _torch(names: Iterable[tuple[str, Any]]) -> dict[tuple[str, str], type]:
    return {("torch", f"{name}Storage"): _storage_type(f"{name}Storage", dtype) for name, dtype in names}


_ALLOWED: dict[tuple[str, str], type] = {
    **_torch([("Double", np.float64), ("Float", np.float32), ("Half", np.float16), ("BFloat16", ml_dtypes.bfloat16)]),
    **_torch([("Long", np.int64), ("Int", np.int32), ("Short", np.int16), ("Char", np.int8), ("Byte", np.uint8)]),
    **_torch([("Bool", np.bool_), ("Untyped", np.uint8)]),
    ("torch.storage", "UntypedStorage"): _storage_type("UntypedStorage", np.uint8),
    ("torch", "Size"): Size,
    ("torch._utils", "_rebuild_tensor"): RebuildTensor,
    ("torch._utils", "_rebuild_tensor_v2"): RebuildTensor,
    ("torch._utils", "_rebuild_parameter"): RebuildParameter,
    ("collections", "OrderedDict"): PlainDict,
    ("collections", "defaultdict"): PlainDict,
    ("collections", "Counter"): PlainDict,
    ("_codecs", "encode"): Encoded,
    ("argparse", "Namespace"): Inert,
    ("enum", "Enum"): Inert,
    ("operator", "getitem"): Inert,  # how the type `Optional[int]` pickles
    ("_operator", "getitem"): Inert,
    ("pathlib", "PosixPath"): Inert,
    ("torch", "device"): Inert,
    ("torch", "Tensor"): Inert,
    ("torch.nn.parameter", "Parameter"): Inert,
}
_BUILTIN_TYPES = re.compile(
    "(frozen)?set|dict|list|tuple|int|long|float|complex|str|unicode|bool|bytes|bytearray|object"
)
_TORCH_DTYPES = re.compile(r"(bfloat|float|half|double|u?int|long|short|bool)\d*")
_DATA = frozenset({"typing"})  # of Python's modules, those with nothing but types
_CAPABLE = frozenset({*sys.stdlib_module_names, "__builtin__", "copy_reg", "commands", "torch"})
