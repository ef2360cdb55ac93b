"""Where a model can be compressed: its prunable axes and its dense maps, read off the arch.

Declared once, here, next to the modules; `compress` works on whatever is declared and knows no model.
"""

from compress.address import Axis, Matrix
from jaxssl.models.arch import Arch, Layer


def axes(arch: Arch) -> tuple[Axis, ...]:
    """List the prunable axes: `layers/<i>/attention/heads` and `layers/<i>/ffn/hidden`, layer by layer."""
    return tuple(axis for i, layer in enumerate(arch.layers) for axis in (_heads(i, layer), _hidden(i, layer)))


def matrices(arch: Arch) -> tuple[Matrix, ...]:
    """List the dense maps that can be factorised: `project`, then q, k, v, out, fc1 and fc2 of every layer.

    The output layer is left out: it is dropped once pre-training ends and costs nothing in use.
    """
    project = Matrix("project", 1, (arch.front.size, arch.width), arch.project_rank)
    return (project, *(matrix for i, layer in enumerate(arch.layers) for matrix in _layer_matrices(arch, i, layer)))


def _heads(index: int, layer: Layer) -> Axis:
    at = f"layers/{index}/attention"
    inner = tuple(
        leaf
        for name in ("q", "k", "v")
        for leaf in ((f"{at}/{name}/{_output(getattr(layer.ranks, name))}", 1), (f"{at}/{name}/bias", 0))
    )
    return Axis(f"{at}/heads", layer.heads, (*inner, (f"{at}/out/{_input(layer.ranks.out)}", 0)))


def _hidden(index: int, layer: Layer) -> Axis:
    at = f"layers/{index}/ffn"
    fc1 = (f"{at}/fc1/{_output(layer.ranks.fc1)}", 1)
    fc2 = (f"{at}/fc2/{_input(layer.ranks.fc2)}", 0)
    return Axis(f"{at}/hidden", layer.ffn, (fc1, (f"{at}/fc1/bias", 0), fc2))


def _output(rank: int | None) -> str:
    """Name the array that holds a map's output axes; in `kernel` and in `up` these begin at axis 1."""
    return "kernel" if rank is None else "up"


def _input(rank: int | None) -> str:
    """Name the array that holds a map's input axes."""
    return "kernel" if rank is None else "down"


def _layer_matrices(arch: Arch, index: int, layer: Layer) -> tuple[Matrix, ...]:
    attention, ffn = f"layers/{index}/attention", f"layers/{index}/ffn"
    inner = (layer.heads, arch.head_dim)
    return (
        *(Matrix(f"{attention}/{n}", 1, (arch.width, *inner), getattr(layer.ranks, n)) for n in ("q", "k", "v")),
        Matrix(f"{attention}/out", 2, (*inner, arch.width), layer.ranks.out),
        Matrix(f"{ffn}/fc1", 1, (arch.width, layer.ffn), layer.ranks.fc1),
        Matrix(f"{ffn}/fc2", 1, (layer.ffn, arch.width), layer.ranks.fc2),
    )
