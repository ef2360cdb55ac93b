"""What a part of a model says of itself.

A part is a frozen dataclass with a tag, `kind`: a front end, a token mixer, a position scheme, a feed-forward block, an
output. It holds everything about itself: its dense maps in one table, the units that can go, its multiplications and
memory beyond the maps, the module that computes it, what its arrays tell of it, what it cannot be, and what other
programs call its arrays. What is derived (`sites`, `cost`, `describe`, `checks`, JSON) asks the parts, so a new one is
one file and one line in a union of `arch`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from jax import Array
from jax.tree_util import register_dataclass

from compress.address import Matrix
from compress.errors import InputError
from jaxssl.models.names import Rule

Arrays = Mapping[str, Any]
Dialect = Literal["fairseq", "huggingface"]
Names = Mapping[Dialect, tuple[Rule, ...]]
Side = Literal["in", "out"]
Padding = Literal["independent", "fairseq", "transformers", "faster_whisper"]


@dataclass(frozen=True)
class Full:
    """A dense map stored whole: `kernel`, or `kernel` in int8 with scales beside it (`compress.quantize`)."""

    int8: bool = False
    kind: Literal["full"] = "full"


@dataclass(frozen=True)
class Rank:
    """A dense map stored as two thin ones, `down` and `up` (`compress.lowrank`), both in int8 or neither."""

    rank: int
    int8: bool = False
    kind: Literal["rank"] = "rank"


@dataclass(frozen=True)
class Blocks:
    """A dense map that keeps only some square blocks (`compress.blocks`): their size, and how many of each column."""

    size: int
    kept: int
    kind: Literal["blocks"] = "blocks"
    int8 = False  # blocks are stored in float


Form = Full | Rank | Blocks
FULL = Full()


@dataclass(frozen=True)
class Map:
    """A dense map of a part: the last axes of its input, `inputs`, become `outputs`.

    Attributes:
        name: of the part's field that holds the form, and of the arrays' place below the part.
        inputs: sizes of the input axes.
        outputs: sizes of the output axes.
        form: how its weights are stored.
        bias: whether one is added to its outputs.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    form: Form = FULL
    bias: bool = True

    def matrix(self, path: str) -> Matrix:
        """Describe the map at a path as `compress` addresses it."""
        rank = self.form.rank if isinstance(self.form, Rank) else None
        blocks = (self.form.size, self.form.kept) if isinstance(self.form, Blocks) else None
        return Matrix(path, len(self.inputs), (*self.inputs, *self.outputs), rank, blocks, self.form.int8, self.bias)

    def leaf(self, side: Side) -> tuple[str, int]:
        """Name the array that holds the map's first input or output axis, and which of its axes that is."""
        thin = isinstance(self.form, Rank)
        if side == "in":
            return ("down" if thin else "kernel"), 0
        return ("up", 1) if thin else ("kernel", len(self.inputs))


@dataclass(frozen=True)
class Units:
    """Units of a part that can go one by one, as attention heads do.

    Attributes:
        name: of the axis, below the part.
        size: how many there are.
        maps: the maps that have the units, and on which side, in the order in which scores read them.
        into: the map that the units feed.
        shared: whether the units are those of the same part in the layer before, so that both go together.
        arrays: what else has the units: paths below the part, and the axis there.
        also_into: further maps that the units feed.
        normed: whether a norm over all units stands before the map that they feed, so that no weights of it can stand
            for a unit's gate: what goes, the norm hears no more.
    """

    name: str
    size: int
    maps: tuple[tuple[str, Side], ...]
    into: str
    shared: bool = False
    arrays: tuple[tuple[str, int], ...] = ()
    also_into: tuple[str, ...] = ()
    normed: bool = False


@register_dataclass
@dataclass(frozen=True)
class Featured:
    """What a front end makes of a batch.

    Attributes:
        features: (batch, time, size).
        lengths: valid frames of each row, (batch,); None: all.
        extracted: its raw output, (batch, time, size), of which pre-training keeps the mean square small; None: none.
    """

    features: Array
    lengths: Array | None
    extracted: Array | None = None


@dataclass(frozen=True)
class Dropout:
    """Dropout probabilities in training.

    Attributes:
        hidden: on the encoder's input and on each block's output.
        attention: on attention weights.
        activation: on the feed-forward block's hidden units.
        features: on the projected features (HuBERT's `dropout_input`).
        layer: chance that a layer is skipped (LayerDrop).
    """

    hidden: float = 0.1
    attention: float = 0.1
    activation: float = 0.0
    features: float = 0.0
    layer: float = 0.0


class Block(Protocol):
    """What a mixer and a feed-forward block have in common: maps and units in a residual branch of a layer."""

    names: ClassVar[Names]  # what other programs call its arrays
    place: ClassVar[str]  # of its arrays in a layer; its norm's place has _norm behind it

    @property
    def empty(self) -> bool:
        """Whether it is but a bias, having no units."""
        ...

    def maps(self, width: int) -> tuple[Map, ...]:
        """List the dense maps, in a model whose residual stream is `width` wide."""
        ...

    def units(self) -> tuple[Units, ...]:
        """List the units that can go."""
        ...

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of the units that are called so."""
        ...

    def core_macs(self, frames: int, width: int) -> int:
        """Count the multiply-accumulates of one utterance that are those of no dense map, in a model that wide."""
        ...

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return the bytes that one frame leaves for the backward pass, the stream itself left out."""
        ...

    def read(self, arrays: Arrays) -> Self:
        """Return the part that these arrays are, by names and shapes; this one tells what they cannot."""
        ...


def check_counts(what: str, **numbers: int) -> None:
    """Refuse sizes that leave nothing.

    Raises:
        InputError: the first that is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{what}: {name} is {number}; use 1 or more")


def form_of(dense: Arrays) -> Form:
    """Read the form of a dense map off its arrays."""
    if "blocks" in dense:
        return Blocks(dense["blocks"].shape[2], dense["blocks"].shape[1])
    if "up" in dense:
        return Rank(dense["up"].shape[0], int8="down_scale" in dense)
    return Full(int8="kernel_scale" in dense)


BlockT = TypeVar("BlockT", bound=Block)


def formed(block: BlockT, form: Form) -> BlockT:
    """Return a block with all its maps in one form."""
    changed: Any = block  # every block is a dataclass, which no protocol can say
    return replace(changed, **{spec.name: form for spec in block.maps(1)})


def emptied(block: BlockT) -> BlockT:
    """Return a block without any of its units."""
    for units in block.units():
        block = block.resized(units.name, 0)
    return block
