"""What ONNX has for each operation of a traced JAX program, for shapes that are known.

An operation is given the graph, its equation and the names of its inputs, and returns the name of its output, or of
several.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from jax.lax import FftType

from compress.errors import InputError
from tools.graphs.graph import Graph

Operation = Callable[..., str | list[str]]
RFFT = FftType.RFFT


def plain(kind: str) -> Operation:
    """Return the operation that ONNX has as it is."""
    return lambda graph, equation, *names: graph.add(kind, *names)


def same(graph: Graph, equation: Any, name: str) -> str:
    """Return the input."""
    return name


def reshape(graph: Graph, equation: Any, name: str) -> str:
    """Give the input its output's shape."""
    return graph.reshaped(name, equation.outvars[0].aval.shape)


def broadcast(graph: Graph, equation: Any, name: str) -> str:
    """Put the input's axes where they go, and repeat it along the others."""
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    inner = equation.invars[0].aval.shape
    spread = [1] * len(shape)
    for place, size in zip(places, inner, strict=True):
        spread[place] = size
    name = graph.reshaped(name, spread) if tuple(spread) != inner else name
    return graph.add("Expand", name, graph.numbers(shape)) if tuple(spread) != tuple(shape) else name


def transpose(graph: Graph, equation: Any, name: str) -> str:
    """Order the axes anew."""
    return graph.transposed(name, equation.params["permutation"])


def sliced(graph: Graph, equation: Any, name: str) -> str:
    """Take a part of each axis."""
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    return graph.add("Slice", name, *map(graph.numbers, (starts, ends, range(len(starts)), steps)))


def concatenate(graph: Graph, equation: Any, *names: str) -> str:
    """Put arrays one behind the other."""
    return graph.add("Concat", *names, axis=equation.params["dimension"])


def stack(graph: Graph, equation: Any, *names: str) -> str:
    """Put arrays side by side, on an axis that is new."""
    axis = equation.params["axis"]
    return graph.add("Concat", *(graph.add("Unsqueeze", name, graph.numbers([axis])) for name in names), axis=axis)


def split(graph: Graph, equation: Any, name: str) -> list[str]:
    """Cut an axis into parts."""
    sizes = graph.numbers(equation.params["sizes"])
    return graph.several("Split", len(equation.outvars), name, sizes, axis=equation.params["axis"])


def pad(graph: Graph, equation: Any, name: str, value: str) -> str:
    """Put a value around the input, or cut from it where less than nothing is put."""
    config = equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise InputError("onnx: a pad between numbers has no operation there; export stablehlo")
    ends = [int(low) for low, _, _ in config] + [int(high) for _, high, _ in config]
    return graph.add("Pad", name, graph.numbers(ends), value) if any(ends) else name


def select(graph: Graph, equation: Any, which: str, *cases: str) -> str:
    """Choose the second case where `which` is true; of truths by logic, for ONNX Runtime has no choice between them."""
    if equation.outvars[0].aval.dtype != bool:
        return graph.add("Where", which, cases[1], cases[0])
    others = graph.add("And", graph.add("Not", which), cases[0])
    return graph.add("Or", graph.add("And", which, cases[1]), others)


def convert(graph: Graph, equation: Any, name: str) -> str:
    """Change the kind of number."""
    wanted = equation.params["new_dtype"]
    return graph.cast(name, wanted) if equation.invars[0].aval.dtype != wanted else name


def iota(graph: Graph, equation: Any) -> str:
    """Count along an axis."""
    shape, axis = equation.params["shape"], equation.params["dimension"]
    counted = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return graph.constant(np.broadcast_to(counted, shape).astype(equation.params["dtype"]))


def reduce(kind: str) -> Operation:
    """Return the operation that makes one number of some axes."""
    return lambda graph, equation, name: graph.add(kind, name, graph.numbers(equation.params["axes"]), keepdims=0)


def cumulate(graph: Graph, equation: Any, name: str) -> str:
    """Sum up along an axis."""
    axis = graph.constant(np.asarray(equation.params["axis"], np.int64))
    return graph.add("CumSum", name, axis, reverse=int(equation.params["reverse"]))


def power(graph: Graph, equation: Any, name: str) -> str:
    """Raise to a whole power."""
    return graph.add("Pow", name, graph.constant(np.asarray(equation.params["y"], equation.invars[0].aval.dtype)))


def different(graph: Graph, equation: Any, *names: str) -> str:
    """Tell where two arrays differ."""
    return graph.add("Not", graph.add("Equal", *names))


def inverse_root(graph: Graph, equation: Any, name: str) -> str:
    """Return one over the square root."""
    return graph.add("Reciprocal", graph.add("Sqrt", name))


def log_plus_one(graph: Graph, equation: Any, name: str) -> str:
    """Return log(1 + x), which ONNX has not; below 1e-7 it is off by as much."""
    return graph.add("Log", graph.add("Add", name, graph.constant(np.ones((), np.float32))))


def square(graph: Graph, equation: Any, name: str) -> str:
    """Multiply by itself."""
    return graph.add("Mul", name, name)


def product(graph: Graph, equation: Any, one: str, other: str) -> str:
    """Multiply as matrices: batch axes first, those that are summed over next to each other."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    shapes = [list(each.aval.shape) for each in equation.invars]
    left_free = [i for i in range(len(shapes[0])) if i not in (*left, *left_batch)]
    right_free = [i for i in range(len(shapes[1])) if i not in (*right, *right_batch)]
    batch = [shapes[0][i] for i in left_batch]
    rows, inner = (prod(shapes[0][i] for i in axes) for axes in (left_free, left))
    columns = prod(shapes[1][i] for i in right_free)
    one = graph.transposed(one, [*left_batch, *left_free, *left])
    other = graph.transposed(other, [*right_batch, *right, *right_free])
    one, other = graph.reshaped(one, [*batch, rows, inner]), graph.reshaped(other, [*batch, inner, columns])
    return graph.reshaped(graph.add("MatMul", one, other), equation.outvars[0].aval.shape)


def convolution(graph: Graph, equation: Any, x: str, kernel: str) -> str:
    """Convolve, whatever the order of axes."""
    params = equation.params
    if any(each != 1 for each in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise InputError("onnx: a convolution of a stretched input has no operation there; export stablehlo")
    numbers = params["dimension_numbers"]
    x, kernel = graph.transposed(x, numbers.lhs_spec), graph.transposed(kernel, numbers.rhs_spec)
    y = graph.add(
        "Conv",
        x,
        kernel,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
    )
    return graph.transposed(y, np.argsort(numbers.out_spec).tolist())


def gather(graph: Graph, equation: Any, name: str, places: str) -> str:
    """Take places of one axis, whole slices of the others."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, wanted = equation.invars[0].aval.shape, equation.invars[1].aval.shape
    (axis, *more) = numbers.start_index_map
    behind = axis + len(wanted) - 1
    outside = (*range(axis), *range(behind, behind + len(shape) - axis - 1))
    whole = tuple(1 if i == axis else size for i, size in enumerate(shape))
    if more or numbers.collapsed_slice_dims != (axis,) or tuple(sizes) != whole or numbers.offset_dims != outside:
        raise InputError("onnx: a gather of more than one axis has no operation there; export stablehlo")
    return graph.add("Gather", name, graph.reshaped(places, wanted[:-1]), axis=axis)


def fourier(graph: Graph, equation: Any, name: str) -> str:
    """Transform the last axis of real numbers; what comes out has real and imaginary parts on an axis more."""
    if equation.params["fft_type"] != RFFT or len(equation.params["fft_lengths"]) > 1:
        raise InputError("onnx: only a Fourier transform of one real axis has an operation there; export stablehlo")
    return graph.add("DFT", graph.add("Unsqueeze", name, graph.numbers([-1])), onesided=1)  # of the last axis but one


def part(place: int) -> Operation:
    """Return the operation that takes the real part, 0, or the imaginary one, 1."""
    return lambda graph, equation, name: graph.add("Gather", name, graph.constant(np.asarray(place, np.int64)), axis=-1)


OPERATIONS: dict[str, Operation] = {
    **{
        name: plain(kind)
        for name, kind in {
            "add": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "max": "Max",
            "min": "Min",
            "neg": "Neg",
            "abs": "Abs",
            "exp": "Exp",
            "log": "Log",
            "sqrt": "Sqrt",
            "erf": "Erf",
            "logistic": "Sigmoid",
            "tanh": "Tanh",
            "sin": "Sin",
            "cos": "Cos",
            "and": "And",
            "or": "Or",
            "not": "Not",
            "lt": "Less",
            "le": "LessOrEqual",
            "gt": "Greater",
            "ge": "GreaterOrEqual",
            "eq": "Equal",
            "pow": "Pow",
        }.items()
    },
    **dict.fromkeys(("name", "copy", "copy_p", "stop_gradient", "optimization_barrier"), same),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), reshape),
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "convert_element_type": convert,
    "cumsum": cumulate,
    "dot_general": product,
    "fft": fourier,
    "gather": gather,
    "imag": part(1),
    "integer_pow": power,
    "iota": iota,
    "log1p": log_plus_one,
    "ne": different,
    "pad": pad,
    "real": part(0),
    "reduce_max": reduce("ReduceMax"),
    "reduce_sum": reduce("ReduceSum"),
    "rsqrt": inverse_root,
    "select_n": select,
    "slice": sliced,
    "split": split,
    "square": square,
    "stack": stack,
    "transpose": transpose,
}
