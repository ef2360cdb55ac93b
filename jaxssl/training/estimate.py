"""What pre-training on many chips will take, by arithmetic: memory, traffic and time of one update.

Nothing is run. Each chip's figures are its vendor's published ones, and what share of them a program reaches is an
assumption (`Assumed`), so the times say which of two plans is better, and a measurement says how long it takes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from compress.errors import InputError
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.cost import macs
from jaxssl.models.model import shapes
from jaxssl.models.zoo import PRESETS
from jaxssl.training.sharding import sharded_axis

GIB = 2**30
FLOAT32 = 4


@dataclass(frozen=True)
class Chip:
    """An accelerator's published figures.

    Attributes:
        flops: peak dense bfloat16 operations per second.
        memory: of one chip, in bytes.
        link: bytes per second that a chip can send to its neighbours, half of the vendor's both-ways figure.
        island: how many chips `link` joins.
        network: bytes per second that a chip can send beyond its island; None where it is not needed or not known.
        source: where the figures are from.
    """

    flops: float
    memory: float
    link: float
    island: int
    network: float | None
    source: str


CLOUD = "Google Cloud TPU documentation"
MEMORY = "from memory of the published specification, not checked"
CHIPS = {
    "tpu-v4": Chip(275e12, 32e9, 150e9, 4096, None, f"{CLOUD}, v4 (2,400 Gb/s both ways); {MEMORY}"),
    "tpu-v5e": Chip(197e12, 16e9, 200e9, 256, 3.1e9, f"{CLOUD}, v5e: 400 GB/s both ways, 6.4 Tb/s beyond 256 chips"),
    "tpu-v5p": Chip(459e12, 95e9, 300e9, 6144, None, f"{CLOUD}, v5p: 4,800 Gb/s, taken as both ways"),
    "tpu-v6e": Chip(918e12, 32e9, 400e9, 256, 12.5e9, f"{CLOUD}, v6e (800 GB/s both ways); {MEMORY}"),
    "h100": Chip(989e12, 80e9, 450e9, 8, 50e9, "NVIDIA H100 SXM data sheet: NVLink 900 GB/s; 400 Gb/s network assumed"),
}


@dataclass(frozen=True)
class Assumed:
    """What no specification says.

    Attributes:
        compute: share of the peak reached while computing.
        link: share of the links' rate reached by collectives.
        memory: share of a chip's memory that a program may plan with.
    """

    compute: float = 0.4
    link: float = 0.7
    memory: float = 0.9


@dataclass(frozen=True)
class Work:
    """One chip's share of a batch.

    Attributes:
        seconds: of speech on each chip. HuBERT (Hsu et al. 2021, §IV) had at most 87.5 on each of 32 GPUs for Base,
            56.25 on 128 for Large, 22.5 on 256 for X-Large.
        crop: length of one utterance, in seconds.
        remat: whether layers are computed again in the backward pass (`stack="remat"`).
        width: bytes of the dtype of the computation, 2 for bfloat16.
    """

    seconds: float = 60.0
    crop: float = 15.0
    remat: bool = True
    width: int = 2


def state_bytes(arch: Arch, fsdp: int) -> dict[str, int]:
    """Return what the state of training takes on one chip: float32 parameters, their gradients, Adam's two moments.

    Arrays that `sharding.sharded_axis` spreads take 1 / fsdp of their size.
    """
    spread, copied = entries(arch, fsdp)
    each = FLOAT32 * (spread // fsdp + copied)
    return {"parameters": each, "gradients": each, "moments": 2 * each}


def entries(arch: Arch, fsdp: int) -> tuple[int, int]:
    """Count parameters in arrays that are spread over `fsdp` chips, and in those that every chip has."""
    leaves = jax.tree.leaves(shapes(arch))
    spread = sum(leaf.size for leaf in leaves if sharded_axis(leaf.shape, fsdp) is not None)
    return spread, sum(leaf.size for leaf in leaves) - spread


def activation_bytes(arch: Arch, work: Work, *, fsdp: int = 1) -> float:
    """Return what the forward pass leaves for the backward pass on one chip, in bytes.

    With w the width, a = heads · head_dim, h heads, f hidden units, t frames of an utterance, e bytes of the dtype, one
    frame leaves in one layer (the term in brackets only where attention drops some; random bits are made again)

        h·t·(8 + 2e) [+ h·t·e]  +  2·e·f  +  e·(4·a + 2·w)

    and 8·e·w outside the layers. The constants were read off XLA's buffer assignment on a CPU (jax 0.10, float32, two
    to four layers); other compilers fuse more, so this is rather an upper bound. With `remat` each layer leaves its
    input and its output, 2·e·w; the layer at work takes 5/4 of the sum above; and the layers' parameters and gradients
    are stacked: 8 bytes each, spread as they are. An entry of the waveform extractor's maps takes 3·e, with
    layer norms 8 more.
    """
    rows, samples = work.seconds / work.crop, round(work.crop * SAMPLE_RATE)
    frames = [arch.frames(samples, layer=i) for i in range(len(arch.layers))]
    layers = [
        t * (2 * work.width * arch.width + sum(b.activation_bytes(t, work.width, arch.dropout) for b in layer.blocks))
        for layer, t in zip(arch.layers, frames, strict=True)
    ]
    outside = 8 * work.width * arch.width * arch.shortened(arch.front.frames(samples))
    extractor = arch.front.activation_bytes(samples, work.width)
    if not work.remat:
        return rows * (sum(layers) + outside + extractor)
    kept = 2 * work.width * arch.width * sum(frames)
    stacked = 2 * FLOAT32 * sum(leaf.size for leaf in jax.tree.leaves(shapes(arch)["layers"])) / fsdp
    return rows * (kept + 1.25 * max(layers) + outside + extractor) + stacked


def gathered_bytes(arch: Arch, fsdp: int) -> float:
    """Return what FSDP holds of other chips' parameters: the layer at work and the next one, float32."""
    layers = shapes(arch)["layers"].values()
    largest = max(sum(leaf.size for leaf in jax.tree.leaves(layer)) for layer in layers)
    return 2 * FLOAT32 * largest * (fsdp - 1) / fsdp


@dataclass(frozen=True)
class Traffic:
    """What one chip sends in one update, in bytes.

    Attributes:
        gather: parameters, gathered along `fsdp` once forward and once backward.
        scatter: gradients, summed and scattered along `fsdp`.
        reduce: gradients, summed over the groups, within the island.
        network: the same, beyond the island.
    """

    gather: float
    scatter: float
    reduce: float
    network: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.gather + self.scatter + self.reduce + self.network


def traffic(arch: Arch, chips: int, fsdp: int, *, island: int) -> Traffic:
    """Return what one chip sends in one update, float32, by ring collectives.

    A ring of n sends (n − 1)/n of the bytes to gather or to scatter, twice that to sum (Patarasuk and Yuan 2009). Sums
    over several islands are done in two levels: within each, then each chip its part across.
    """
    spread, copied = (FLOAT32 * count for count in entries(arch, fsdp))
    ring = _ring(fsdp)
    islands = math.ceil(chips / island)
    groups = max(min(chips, island) // fsdp, 1)  # along `data`, within one island
    near, everyone = _ring(groups), _ring(min(chips, island))
    far = spread / fsdp / groups + copied / min(chips, island)
    return Traffic(
        gather=2 * ring * spread,
        scatter=ring * spread,
        reduce=2 * near * spread / fsdp + 2 * everyone * copied,
        network=2 * _ring(islands) * far,
    )


def operations(arch: Arch, work: Work) -> float:
    """Return the floating-point operations of one chip in one update, without the optimiser's.

    Two for each MAC, three times the forward pass's; the layers' forward pass once more with `remat`.
    """
    count = macs(arch, round(work.crop * SAMPLE_RATE))
    layers = count.attention_maps + count.attention_core + count.ffn + count.convolution
    return work.seconds / work.crop * (6 * count.total + (2 * layers if work.remat else 0))


def plan(arch: Arch, chip: Chip, chips: int, work: Work, *, fsdp: int, assumed: Assumed = Assumed()) -> dict[str, Any]:
    """Return memory, traffic and time of one update on one of `chips` chips.

    Traffic and computation are added up, as if neither hid the other: XLA overlaps them where it can.
    """
    if chips % fsdp:
        raise InputError(f"--fsdp {fsdp} does not divide {chips} chips")
    if fsdp > chip.island or (chips > chip.island and chip.network is None):
        raise InputError(f"{chips} chips with --fsdp {fsdp}: only {chip.island} are joined by fast links")
    state, copied = sum(state_bytes(arch, fsdp).values()), sum(state_bytes(arch, 1).values())
    activations = activation_bytes(arch, work, fsdp=fsdp) + gathered_bytes(arch, fsdp)
    sent = traffic(arch, chips, fsdp, island=chip.island)
    beyond = sent.network / chip.network if sent.network and chip.network else 0.0
    moving = ((sent.total - sent.network) / chip.link + beyond) / assumed.link
    computing = operations(arch, work) / (chip.flops * assumed.compute)
    step = computing + moving
    return {
        "chips": chips,
        "fsdp": fsdp,
        "state_data_gib": copied / GIB,
        "state_gib": state / GIB,
        "activations_gib": activations / GIB,
        "memory_gib": (state + activations) / GIB,
        "fits": "yes" if state + activations <= assumed.memory * chip.memory else "no",
        "traffic_gb": sent.total / 1e9,
        "traffic_ms": 1e3 * moving,
        "compute_ms": 1e3 * computing,
        "step_ms": 1e3 * step,
        "efficiency": computing / step,
        "batch_s": chips * work.seconds,
        "speech": chips * work.seconds / step,
    }


# copied: the state if every chip had all of it; send, comp., step: sending, computing, both; × real: of the whole run
COLUMNS = {
    "model": "model",
    "chips": "chips",
    "fsdp": "fsdp",
    "batch_s:,.0f": "batch s",
    "state_data_gib:.1f": "copied GiB",
    "state_gib:.1f": "state GiB",
    "activations_gib:.1f": "act. GiB",
    "memory_gib:.1f": "sum GiB",
    "fits": "fits",
    "traffic_gb:.2f": "sent GB",
    "traffic_ms:.1f": "send ms",
    "compute_ms:.0f": "comp. ms",
    "step_ms:.0f": "step ms",
    "efficiency:.0%": "effic.",
    "speech:,.0f": "× real",
}


def rows(
    preset: str,
    *,
    chip: str = "tpu-v5e",
    chips: Sequence[int] = (8, 16, 32, 64, 128, 256, 512, 1024),
    fsdp: int | None = None,
    batch_s: float | None = None,
    work: Work = Work(),
    assumed: Assumed = Assumed(),
) -> list[dict[str, Any]]:
    """Plan one model on growing numbers of chips; keys as in `COLUMNS`.

    Args:
        preset: name of an arch in `PRESETS`.
        chip: name in `CHIPS`.
        chips: how many of them, one row each.
        fsdp: over how many chips parameters are spread; None spreads them only as far as memory asks for: the first
            of 1, 2, 4, … that fits, or the largest possible when none does.
        batch_s: seconds of speech in a whole batch, shared by the chips; None gives each chip `work.seconds`. Numbers
            of chips that would not get one utterance each are left out.
        work: one chip's share.
        assumed: what no specification says.

    Raises:
        InputError: the model or the chip has no such name, or the chips cannot be divided so.
    """
    arch = named(preset, PRESETS, "model")()
    kind = named(chip, CHIPS, "chip")
    found = []
    for count in chips:
        share = work if batch_s is None else replace(work, seconds=batch_s / count)
        if share.seconds >= share.crop:
            degrees = [fsdp] if fsdp else [2**i for i in range(11) if count % 2**i == 0 and 2**i <= kind.island]
            plans = (plan(arch, kind, count, share, fsdp=degree, assumed=assumed) for degree in degrees)
            found.append({"model": preset, "chip": chip, **_first_that_fits(plans)})
    return found


def named(name: str, values: dict[str, Any], what: str) -> Any:
    """Return the value of that name.

    Raises:
        InputError: there is none.
    """
    if name not in values:
        raise InputError(f"no {what} is called {name!r}; there are {', '.join(values)}")
    return values[name]


def _first_that_fits(plans: Iterable[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in plans:
        if last["fits"] == "yes":
            break
    return last


def _ring(size: int) -> float:
    return (size - 1) / size
