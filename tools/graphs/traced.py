"""A JAX function of arrays whose shapes are known, as an ONNX graph."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from onnx import ModelProto, helper

from compress.errors import InputError
from tools.graphs.graph import Graph, described
from tools.graphs.operations import OPERATIONS

OPSET = 20
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # what operations that hold a program call it


def onnx_of(function: Callable[..., Any], inputs: Sequence[Any], names: Sequence[str], results: Sequence[str]) -> Any:
    """Trace a function and write it as an ONNX model; arrays that it holds become constants.

    Args:
        function: of arrays, to a flat sequence of arrays.
        inputs: an array or `jax.ShapeDtypeStruct` for each argument.
        names: of the graph's inputs.
        results: names of its outputs.

    Raises:
        InputError: ONNX has no operation for one of the program's.
    """
    closed = jax.make_jaxpr(function)(*inputs)
    graph = Graph()
    found = run(graph, closed.jaxpr, [graph.constant(np.asarray(each)) for each in closed.consts], list(names))
    for name, wanted in zip(found, results, strict=True):
        graph.called(name, wanted)
    ins = [described(name, var.aval) for name, var in zip(names, closed.jaxpr.invars, strict=True)]
    outs = [described(name, var.aval) for name, var in zip(results, closed.jaxpr.outvars, strict=True)]
    model: ModelProto = helper.make_model(
        graph.finished("main", ins, outs), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
    )
    return model


def run(graph: Graph, program: Jaxpr, constants: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Add a program's operations; return the names of what it returns."""
    known = dict(zip((*program.constvars, *program.invars), (*constants, *inputs), strict=True))

    def named(var: Any) -> str:
        if not isinstance(var, Literal):
            return known[var]
        kind: Any = var.aval  # the number itself may be Python's
        return graph.constant(np.asarray(var.val, kind.dtype))

    for equation in program.eqns:
        found = operate(graph, equation, [named(var) for var in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [named(var) for var in program.outvars]


def operate(graph: Graph, equation: Any, names: list[str]) -> list[str]:
    """Add one operation; return the names of its outputs."""
    kind = equation.primitive.name
    if kind == "scan":
        return scan(graph, equation, names)
    inner = next((equation.params[name] for name in CALLS if name in equation.params), None)
    if inner is not None:
        return called(graph, inner, names)
    if kind not in OPERATIONS:
        raise InputError(f"onnx: {kind} has no operation there; export stablehlo")
    found = OPERATIONS[kind](graph, equation, *names)
    return [found] if isinstance(found, str) else found


def called(graph: Graph, program: ClosedJaxpr | Jaxpr, names: Sequence[str]) -> list[str]:
    """Add a program that another one calls."""
    if isinstance(program, ClosedJaxpr):
        return run(graph, program.jaxpr, [graph.constant(np.asarray(each)) for each in program.consts], names)
    return run(graph, program, [], names)


def scan(graph: Graph, equation: Any, names: Sequence[str]) -> list[str]:
    """Add a loop over the first axis: once through, what it does; else ONNX's own Scan."""
    params, program = equation.params, equation.params["jaxpr"]
    # What runs along has one axis more outside than inside; versions of JAX call the numbers of the others differently.
    carried = _alike(equation.outvars, program.jaxpr.outvars)
    shared = _alike(equation.invars, program.jaxpr.invars) - carried
    fixed, state, each = names[:shared], names[shared : shared + carried], names[shared + carried :]
    if params["length"] == 1:
        first = [graph.add("Squeeze", name, graph.numbers([0])) for name in each]
        found = called(graph, program, [*fixed, *state, *first])
        return [*found[:carried], *(graph.add("Unsqueeze", name, graph.numbers([0])) for name in found[carried:])]
    inner = Graph(graph)
    variables = program.jaxpr.invars[shared:]
    inside = [inner.name() for _ in variables]
    found = called(inner, program, [*fixed, *inside])
    ends = [inner.name() for _ in found]
    for name, end in zip(found, ends, strict=True):
        inner.called(name, end)
    ins = [described(name, var.aval) for name, var in zip(inside, variables, strict=True)]
    outs = [described(name, var.aval) for name, var in zip(ends, program.jaxpr.outvars, strict=True)]
    backward = int(params["reverse"])
    return graph.several(
        "Scan",
        len(found),
        *state,
        *each,
        body=inner.finished(f"loop_{ends[0]}", ins, outs, inner=True),
        num_scan_inputs=len(each),
        scan_input_directions=[backward] * len(each),
        scan_output_directions=[backward] * (len(found) - carried),
    )


def _alike(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """Count the variables that have one shape outside a loop and inside it."""
    return sum(one.aval.shape == two.aval.shape for one, two in zip(outer, inner, strict=True))
