"""Which subnets a supernet is trained for: choices of every size, and those that have a name."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.supernet import Subnet, check_subnet, check_supernet, dropped, groups_of, largest, layers_kept


@dataclass(frozen=True)
class Space:
    """Choices of sizes, each descending; the first of each is the supernet's.

    Attributes:
        widths: channels of the residual stream.
        heads: of a layer.
        ratios: feed-forward units over the width.
        depths: layers.
    """

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...]
    depths: tuple[int, ...]

    @property
    def largest(self) -> Subnet:
        """The supernet itself."""
        return self.uniform(self.widths[0], self.heads[0], self.ratios[0], self.depths[0])

    @property
    def smallest(self) -> Subnet:
        """The subnet with the least of everything."""
        return self.uniform(self.widths[-1], self.heads[-1], self.ratios[-1], self.depths[-1])

    def uniform(self, width: int, heads: int, ratio: float, depth: int) -> Subnet:
        """Return the subnet whose layers are all alike."""
        return Subnet(width, (heads,) * depth, (round(ratio * width),) * depth)

    def draw(self, rng: np.random.Generator) -> Subnet:
        """Draw a subnet, every coordinate uniformly: the width and the depth once, heads and ratio in each layer."""
        width, depth = int(rng.choice(self.widths)), int(rng.choice(self.depths))
        heads, ratios = rng.choice(self.heads, depth).tolist(), rng.choice(self.ratios, depth).tolist()
        return Subnet(width, tuple(heads), tuple(round(ratio * width) for ratio in ratios))

    @property
    def count(self) -> int:
        """How many subnets there are."""
        each = len(self.heads) * len(self.ratios)
        return len(self.widths) * sum(each**depth for depth in self.depths)

    def check(self, arch: Arch) -> None:
        """Refuse choices that the supernet does not have, or that leave out what is largest.

        Raises:
            InputError: the message says which.
        """
        check_supernet(arch)
        for name, values in vars(self).items():
            if not values or list(values) != sorted(set(values), reverse=True):
                raise InputError(f"{name} {', '.join(f'{v:g}' for v in values)}: give one or more, falling, each once")
        whole = largest(arch)
        if self.largest != whole:
            raise InputError(
                f"the largest subnet has width {self.widths[0]}, {self.heads[0]} heads, ratio {self.ratios[0]:g} and "
                f"{self.depths[0]} layers; the model has width {whole.width}, {max(whole.heads)} heads, "
                f"{max(whole.units)} units and {len(arch.layers)} layers, which must be among the choices"
            )
        for width in self.widths:
            for ratio in self.ratios:
                for depth in self.depths:
                    check_subnet(arch, self.uniform(width, self.heads[-1], ratio, depth))


# LightHuBERT's: sizes of the two supernets (its base.yaml and small.yaml), and the subnets that its paper has.
LIGHTHUBERT: Mapping[str, Space] = {
    "base": Space((768, 640, 512), (12, 10, 8), (4.0, 3.5), (12,)),
    "small": Space((512, 384, 256), (8, 6, 4), (4.0, 3.5, 3.0), (12, 11, 10)),
}
PUBLISHED: Mapping[str, Subnet] = {
    "lighthubert-base": Subnet(640, (10,) * 12, (2560,) * 12),
    "lighthubert-small": Subnet(384, (6,) * 12, (1536,) * 12),
}


def space_of(
    arch: Arch,
    *,
    widths: tuple[int, ...] = (),
    heads: tuple[int, ...] = (),
    ratios: tuple[float, ...] = (),
    depths: tuple[int, ...] = (),
) -> Space:
    """Return choices for a model whose layers are alike; what is not given is all, three quarters and half of it.

    Widths are whole numbers of positional groups, and no more layers go than `supernet.dropped` lists.

    Raises:
        InputError: its layers differ, or a choice is none.
    """
    check_supernet(arch)
    sizes = {(layer.heads, layer.ffn.size) for layer in arch.layers}
    if len(sizes) > 1:
        raise InputError(f"layers of {len(sizes)} sizes: a supernet's are alike; use a model before it was pruned")
    ((most, units),) = sizes
    groups, depth, ratio = groups_of(arch), len(arch.layers), units / arch.width
    parts, least = (1.0, 0.75, 0.5), depth - len(dropped(depth))
    found = Space(
        widths or _falling(*(max(round(arch.width * part / groups), 1) * groups for part in parts)),
        heads or _falling(*(max(round(most * part), 1) for part in parts)),
        ratios or tuple(ratio * part for part in parts),
        depths or _falling(*(max(depth - gone, least) for gone in range(3))),
    )
    found.check(arch)
    return found


def named(subnet: Subnet, arch: Arch) -> str:
    """Name a subnet: `w192-l5-h6-u768` where its layers are alike, else means, and what tells it from others.

    >>> from jaxssl.models.arch import melhubert_mini
    >>> named(Subnet(192, (6,) * 5, (768,) * 5), melhubert_mini())
    'w192-l5-h6-u768'
    """
    alike = len(set(subnet.heads)) == len(set(subnet.units)) == 1
    heads, units = np.mean(subnet.heads), np.mean(subnet.units)
    told = f"w{subnet.width}-l{len(subnet.heads)}-h{heads:g}-u{units:g}"
    if alike:
        return told
    kept = layers_kept(len(subnet.heads), len(arch.layers))
    return f"{told}-" + "".join(f"{i}.{h}.{u}_" for i, h, u in zip(kept, subnet.heads, subnet.units, strict=True))[:-1]


def _falling(*values: int) -> tuple[int, ...]:
    return tuple(sorted(set(values), reverse=True))
