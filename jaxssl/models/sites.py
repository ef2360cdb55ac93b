"""Where a model can be compressed: its prunable axes and its dense maps, read off the arch.

Declared once, here, next to the modules; `compress` works on whatever is declared and knows no model.
"""

from compress.address import Axis, Matrix
from compress.errors import InputError
from jaxssl.models.arch import Arch, Layer, Waveform


def axes(arch: Arch) -> tuple[Axis, ...]:
    """List the prunable axes: `layers/<i>/attention/heads` and `layers/<i>/ffn/hidden`, layer by layer.

    A head whose map later layers reuse is one unit with their heads: the axis has their v and out too, and these layers
    have no heads axis of their own.

    Raises:
        InputError: a layer has packed or int8 maps.
    """
    _check_prunable(arch)
    return tuple(axis for i in range(len(arch.layers)) for axis in (*_heads(arch, i), _hidden(i, arch.layers[i])))


def channels(arch: Arch) -> tuple[Axis, ...]:
    """List the prunable channels of a waveform extractor: `front/convs/<i>/channels`, first to last.

    Only where a channel can go without a trace: with a norm over the channels of a frame (Large's extractor, and the
    norm of the features, which the last convolution feeds) the others would change with it. Log-Mel has none.
    """
    front = arch.front
    if not isinstance(front, Waveform) or front.norm == "layer":
        return ()
    last = () if front.feature_norm or not arch.project else (f"project/{_input(arch.project_rank)}",)
    readers = [(f"front/convs/{i}/conv/kernel", 1) for i in range(1, len(front.convs))] + [(path, 0) for path in last]
    return tuple(_channels(front, i, reader) for i, reader in enumerate(readers))


def _channels(front: Waveform, index: int, reader: tuple[str, int]) -> Axis:
    at = f"front/convs/{index}"
    norm = ((f"{at}/norm/scale", 0), (f"{at}/norm/bias", 0)) if index == 0 else ()
    bias = ((f"{at}/conv/bias", 0),) if front.bias else ()
    leaves = ((f"{at}/conv/kernel", 2), *bias, *norm, reader)
    return Axis(f"{at}/channels", front.convs[index].channels, leaves, reader[0].rpartition("/")[0])


def sharing(arch: Arch, index: int) -> range:
    """List the layers that use the attention maps of layer `index`: itself, and those right after it that reuse."""
    end = index + 1
    while end < len(arch.layers) and arch.layers[end].reuse:
        end += 1
    return range(index, end)


def matrices(arch: Arch) -> tuple[Matrix, ...]:
    """List the dense maps that can be factorised: `project`, then q, k, v, out, fc1 and fc2 of every layer.

    What a model has not, as q and k of a layer that reuses attention maps, is not listed.

    The output layer is left out: it is dropped once pre-training ends and costs nothing in use.
    """
    project = (Matrix("project", 1, (arch.front.size, arch.width), arch.project_rank),) if arch.project else ()
    return (*project, *(matrix for i, layer in enumerate(arch.layers) for matrix in _layer_matrices(arch, i, layer)))


def entries(arch: Arch, *, biases: bool = True) -> tuple[tuple[str, ...], ...]:
    """List the tensors whose entries weight pruning drops, one group a layer.

    They are the weights and, unless `biases` is false, the biases of q, k, v, out, fc1 and fc2, as in the study ("Is
    Smaller Always Faster?"); of a factorised map `down` and `up`.

    Raises:
        InputError: a layer has packed or int8 maps.
    """
    _check_prunable(arch)
    return tuple(
        tuple(f"{m.path}/{name}" for m in _layer_matrices(arch, i, layer) for name in _tensors(m.rank, biases))
        for i, layer in enumerate(arch.layers)
    )


def _check_prunable(arch: Arch) -> None:
    for i, layer in enumerate(arch.layers):
        if layer.int8:
            raise InputError(
                f"layers/{i}: its maps are int8, and a cut would leave their scales; dequantize first "
                "(compress.quantize, or jaxssl.inference.specialise.dequantized for the whole model)"
            )
        if count := sum(blocks is not None for blocks in vars(layer.packed).values()):
            raise InputError(
                f"layers/{i}: {count} of its 6 maps are packed, and blocks have no heads, units or entries to prune; "
                "unpack the model first (jaxssl.inference.specialise.unpacked)"
            )


def _tensors(rank: int | None, biases: bool) -> tuple[str, ...]:
    """Name the arrays of a map."""
    weights = ("kernel",) if rank is None else ("down", "up")
    return (*weights, "bias") if biases else weights


def _heads(arch: Arch, index: int) -> tuple[Axis, ...]:
    """Return the layer's heads axis; none for a layer that reuses attention maps."""
    layer = arch.layers[index]
    if layer.reuse:
        return ()
    leaves = tuple(leaf for i in sharing(arch, index) for leaf in _head_leaves(i, arch.layers[i]))
    into, *reusing = (f"layers/{i}/attention/out" for i in sharing(arch, index))
    return (Axis(f"layers/{index}/attention/heads", layer.heads, leaves, into, tuple(reusing)),)


def _head_leaves(index: int, layer: Layer) -> tuple[tuple[str, int], ...]:
    at = f"layers/{index}/attention"
    inner = tuple(
        leaf
        for name in _inner(layer)
        for leaf in ((f"{at}/{name}/{_output(getattr(layer.ranks, name))}", 1), (f"{at}/{name}/bias", 0))
    )
    return (*inner, (f"{at}/out/{_input(layer.ranks.out)}", 0))


def _inner(layer: Layer) -> tuple[str, ...]:
    """Name the maps from the residual stream to the heads."""
    return ("v",) if layer.reuse else ("q", "k", "v")


def _hidden(index: int, layer: Layer) -> Axis:
    at = f"layers/{index}/ffn"
    fc1 = (f"{at}/fc1/{_output(layer.ranks.fc1)}", 1)
    fc2 = (f"{at}/fc2/{_input(layer.ranks.fc2)}", 0)
    return Axis(f"{at}/hidden", layer.ffn, (fc1, (f"{at}/fc1/bias", 0), fc2), f"{at}/fc2")


def _output(rank: int | None) -> str:
    """Name the array that holds a map's output axes; in `kernel` and in `up` these begin at axis 1."""
    return "kernel" if rank is None else "up"


def _input(rank: int | None) -> str:
    """Name the array that holds a map's input axes."""
    return "kernel" if rank is None else "down"


def _layer_matrices(arch: Arch, index: int, layer: Layer) -> tuple[Matrix, ...]:
    attention, ffn = f"layers/{index}/attention", f"layers/{index}/ffn"
    inner, ranks, packed = (layer.heads, arch.head_dim), layer.ranks, layer.packed
    qkv = tuple(
        Matrix(f"{attention}/{n}", 1, (arch.width, *inner), getattr(ranks, n), getattr(packed, n), layer.int8)
        for n in _inner(layer)
    )
    return (
        *qkv,
        Matrix(f"{attention}/out", 2, (*inner, arch.width), ranks.out, packed.out, layer.int8),
        Matrix(f"{ffn}/fc1", 1, (arch.width, layer.ffn), ranks.fc1, packed.fc1, layer.int8),
        Matrix(f"{ffn}/fc2", 1, (layer.ffn, arch.width), ranks.fc2, packed.fc2, layer.int8),
    )
