"""Where a model can be compressed: its prunable axes and its dense maps, read off the arch.

The parts declare them; `compress` works on whatever is declared and knows no model.
"""

from compress.address import Axis, Matrix
from compress.errors import InputError
from jaxssl.models.arch import Arch, Layer
from jaxssl.models.part import Blocks, Map, Units


def axes(arch: Arch) -> tuple[Axis, ...]:
    """List the prunable axes: `layers/<i>/attention/heads` and `layers/<i>/ffn/hidden`, layer by layer.

    A head whose map later layers reuse is one unit with their heads: the axis has their v and out too, and these layers
    have no heads axis of their own.

    Raises:
        InputError: a layer has packed or int8 maps.
    """
    _check_prunable(arch)
    return tuple(
        _axis(arch, i, number, units)
        for i, layer in enumerate(arch.layers)
        for number, block in enumerate(layer.blocks)
        for units in block.units()
        if not units.shared
    )


def channels(arch: Arch) -> tuple[Axis, ...]:
    """List the prunable channels of a waveform extractor: `front/convs/<i>/channels`, first to last."""
    return arch.front.channels(None if arch.project is None else f"project/{_project(arch).leaf('in')[0]}")


def sharing(arch: Arch, index: int) -> range:
    """List the layers that use the attention maps of layer `index`: itself, and those right after it that reuse."""
    end = index + 1
    while end < len(arch.layers) and arch.layers[end].mixer.carries:
        end += 1
    return range(index, end)


def matrices(arch: Arch) -> tuple[Matrix, ...]:
    """List the dense maps that can be factorised: `project`, then those of every layer, as q, k, v, out, fc1 and fc2.

    What a model has not, as q and k of a layer that reuses attention maps, is not listed.

    The output layer is left out: it is dropped once pre-training ends and costs nothing in use.
    """
    project = () if arch.project is None else (_project(arch).matrix("project"),)
    return (*project, *(matrix for i, layer in enumerate(arch.layers) for matrix in layer_matrices(arch, i, layer)))


def layer_matrices(arch: Arch, index: int, layer: Layer) -> tuple[Matrix, ...]:
    """List the dense maps of a layer that stands at `index`, the mixer's first."""
    return tuple(
        spec.matrix(f"layers/{index}/{block.place}/{spec.name}")
        for block in layer.blocks
        for spec in block.maps(arch.width)
    )


def entries(arch: Arch, *, biases: bool = True) -> tuple[tuple[str, ...], ...]:
    """List the tensors whose entries weight pruning drops, one group a layer.

    They are the weights and, unless `biases` is false, the biases of the layers' dense maps, as in the study ("Is
    Smaller Always Faster?"); of a factorised map `down` and `up`.

    Raises:
        InputError: a layer has packed or int8 maps.
    """
    _check_prunable(arch)
    return tuple(
        tuple(f"{m.path}/{name}" for m in layer_matrices(arch, i, layer) for name in _tensors(m, biases))
        for i, layer in enumerate(arch.layers)
    )


def _project(arch: Arch) -> Map:
    assert arch.project is not None
    return Map("project", (arch.front.size,), (arch.width,), arch.project)


def _check_prunable(arch: Arch) -> None:
    for i, layer in enumerate(arch.layers):
        found = [spec.form for block in layer.blocks for spec in block.maps(arch.width)]
        if any(form.int8 for form in found):
            raise InputError(
                f"layers/{i}: its maps are int8, and a cut would leave their scales; dequantize first "
                "(compress.quantize, or jaxssl.inference.specialise.dequantized for the whole model)"
            )
        if count := sum(isinstance(form, Blocks) for form in found):
            raise InputError(
                f"layers/{i}: {count} of its {len(found)} maps are packed, and blocks have no heads, units or entries "
                "to prune; unpack the model first (jaxssl.inference.specialise.unpacked)"
            )


def _tensors(matrix: Matrix, biases: bool) -> tuple[str, ...]:
    """Name the arrays of a map."""
    weights = ("kernel",) if matrix.rank is None else ("down", "up")
    return (*weights, "bias") if biases and matrix.bias else weights


def _axis(arch: Arch, index: int, number: int, units: Units) -> Axis:
    """Return the axis of a block's units, with those of later layers that go with them."""
    together = sharing(arch, index) if number == 0 else range(index, index + 1)
    leaves, into = [], []
    for i in together:
        block = arch.layers[i].blocks[number]
        at = f"layers/{i}/{block.place}"
        mine = next(each for each in block.units() if each.name == units.name)
        leaves += _leaves(at, {spec.name: spec for spec in block.maps(arch.width)}, mine)
        into += [f"{at}/{name}" for name in (mine.into, *mine.also_into)]
    name = f"layers/{index}/{arch.layers[index].blocks[number].place}/{units.name}"
    return Axis(name, units.size, tuple(leaves), into[0], tuple(into[1:]), units.normed)


def _leaves(at: str, maps: dict[str, Map], units: Units) -> list[tuple[str, int]]:
    """List the arrays that have some units, and on which axis: of outputs the bias too."""
    found = []
    for name, side in units.maps:
        leaf, axis = maps[name].leaf(side)
        biases = [(f"{at}/{name}/bias", 0)] if side == "out" and maps[name].bias else []
        found += [(f"{at}/{name}/{leaf}", axis), *biases]
    return [*found, *((f"{at}/{path}", axis) for path, axis in units.arrays)]
