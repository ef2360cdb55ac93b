"""What keeps a model out of formats that say one layer's sizes for all layers."""

from jaxssl.models.arch import Arch
from jaxssl.models.sites import matrices


def differing(arch: Arch) -> dict[str, bool]:
    """Return what may be so of a model's layers, and whether it is; the format holds them where nothing is."""
    return {
        "it has no layers": not arch.layers,
        "its layers differ": len(set(arch.layers)) > 1,
        "its layers are a Conformer's": any(layer.conformer for layer in arch.layers),
        "blocks were emptied": any(block.empty for layer in arch.layers for block in layer.blocks),
        "heads were cut": any(layer.attention.heads * layer.attention.head_dim != arch.width for layer in arch.layers),
        "maps are factorised": any(matrix.rank is not None for matrix in matrices(arch)),
        "attention maps are reused": any(layer.mixer.carries for layer in arch.layers),
        "its attention has a limited context": any(layer.attention.context != (None, None) for layer in arch.layers),
    }
