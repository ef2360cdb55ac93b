"""Frames that the layers of a shortened model hear: how many in a second, and whether any are left of what is heard."""

from compress.errors import InputError
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.rates.merging import WHOLE


def frames_per_s(arch: Arch) -> float:
    """Count the frames that the last layer works on in a second of long speech."""
    whole = WHOLE * arch.grouped  # so many that none is left over, whatever groups and shares
    return float(arch.front.rate / arch.front.hop * arch.reduced(whole, layer=len(arch.layers) - 1) / whole)


def check_heard(what: str, arch: Arch, *, seconds: float) -> None:
    """Refuse an arch that makes no frame of what is heard at once; `what` made it.

    Raises:
        InputError: it does.
    """
    frames = arch.front.frames(round(seconds * SAMPLE_RATE))
    if frames < arch.least:
        raise InputError(
            f"{what}: one frame would be made of {arch.least}, and {seconds:g} s have {frames}; give a smaller ratio, "
            "or larger --crop and --seconds"
        )
