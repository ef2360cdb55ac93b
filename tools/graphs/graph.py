"""An ONNX graph that grows node by node, and the graphs within it, which see its names."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


class Graph:
    """Nodes in the order in which they run; constants are the outermost graph's."""

    def __init__(self, outer: "Graph | None" = None):
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = [] if outer is None else outer.constants
        self._numbers: Iterator[int] = count() if outer is None else outer._numbers
        self._known: dict[tuple[int, ...], str] = {} if outer is None else outer._known

    def name(self) -> str:
        """Return a name that no other has."""
        return f"v{next(self._numbers)}"

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node; return its outputs' names."""
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, value: Any) -> str:
        """Add an array; return its name."""
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def numbers(self, values: Iterable[int]) -> str:
        """Add whole numbers, as shapes and axes are given; once for all who want the same."""
        key = tuple(int(value) for value in values)
        if key not in self._known:
            self._known[key] = self.constant(np.asarray(key, np.int64))
        return self._known[key]

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        """Give an array another shape."""
        return self.add("Reshape", name, self.numbers(shape))

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """Give its axes another order, where it is another."""
        same = list(order) == list(range(len(order)))
        return name if same else self.add("Transpose", name, perm=[int(axis) for axis in order])

    def cast(self, name: str, dtype: Any) -> str:
        """Change its kind of number."""
        return self.add("Cast", name, to=kind_of(dtype))

    def called(self, name: str, wanted: str) -> None:
        """Give an array a second name, which may then be an output's."""
        self.nodes.append(helper.make_node("Identity", [name], [wanted]))

    def finished(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], *, inner: bool = False
    ) -> GraphProto:
        """Return the graph; an inner one has no constants of its own."""
        return helper.make_graph(self.nodes, name, inputs, outputs, [] if inner else self.constants)


def kind_of(dtype: Any) -> int:
    """Return ONNX's number for a kind of number."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def described(name: str, aval: Any) -> ValueInfoProto:
    """Describe an array with a shape and a dtype."""
    return helper.make_tensor_value_info(name, kind_of(aval.dtype), list(aval.shape))
