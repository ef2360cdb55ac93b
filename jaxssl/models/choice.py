"""Which way each part of a model is computed, by device, from measurements: the one table of such choices.

part        CPU                                   NVIDIA GPU                           elsewhere
----------  ------------------------------------  -----------------------------------  ----------
convolu-    our kernel where weights are          convolution                          convolution
tions       prepared; convolution
those of    sum of products with shifted frames,  convolution                          convolution
channels    up to 64 taps; convolution
scans       our kernel where the model is         loop over frames                     loop over
            prepared; loop over frames                                                 frames
positions   Fourier transform (`fourier`) from    product with bands (`banded`)        convolution
            1000 frames of a batch on; our kernel
            where weights are prepared and frames
            few, else the transform; convolution
attention   our kernel (`jaxssl.runtime.native`)  cuDNN's flash attention in bfloat16  all heads
            where weights are prepared; one head  and float16; all heads together      together; TPUs
            after another from 512 frames on;                                          see below
            all heads together
dense maps  our kernels where weights are         plain products                       plain products
            prepared, those of int8 maps where
            the processor has instructions for
            them; plain products
rows        one after another from 1000 frames    all together                         all together
            of each on; all together
utterances  one by one                            16 together                          16 together
of a corpus
training    our kernels, on one device, for       XLA's derivatives of the above       likewise
            attention, whole dense maps, scans
            and the waveform's convolutions; else
            XLA's derivatives of the above
layers that written out where our kernels train      scanned (`stack`)                    likewise
a gradient  (`stack`); scanned
computes
again

Our kernels are there where the machine has a C++ compiler. They run in float32 and bfloat16, scans in float32. Those
for training are chosen where a model has a key for dropout, and drop what XLA's way would.

Measured on two cores of an AMD EPYC with AVX-512, AVX512-BF16 and VNNI (Zen 5), 24 matrices in turn so that weights
come from memory, in GMAC/s of products of 49 / 249 / 749 frames:

                      768 → 768         768 → 3072        3072 → 768
    XLA, float32      161 / 214 / 234   161 / 213 / 235   176 / 221 / 236
    float32           209 / 224 / 234   211 / 225 / 226   222 / 232 / 236
    bfloat16          407 / 451 / 451   411 / 450 / 464   416 / 475 / 494
    int8, quantising  476 / 667 / 673   703 / 720 / 730   733 / 799 / 778

Whole models there, milliseconds of 1 / 5 / 15 s; in brackets those of before weights were packed, when our kernels had
float32 only (2026-11-29, positions still a product, see below):

                       HuBERT Base                     MelHuBERT 20 ms
    float32            34 / 160 / 504 (40/172/531)     23 / 108 / 353 (27/110/347)
    bfloat16           18 / 84 / 263 (44/147/489)      13 / 56 / 180 (28/78/270)
    int8 maps          20 / 96 / 319 (41/149/455)      11 / 44 / 155 (30/87/270)

On two cores of an Intel Emerald Rapids without AMX, whose AVX512-BF16 adds up pairs at half the rate of float32, in
GMAC/s of products of 768 × 3072 with 49 / 249 / 749 frames: float32 114 / 121 / 119, bfloat16 by pairs 69 / 83 / 87,
widened to float32 86 / 102 / 93, and as int16 by VNNI 173 / 232 / 224 (`native.pack_int16`). Kernels built for less, on
the same cores, 249 frames: by AVX2 alone float32 52, int16 69, widened 32; by AVX2 and VNNI 54, 96 and 36, int8 163.

As a product by our kernels, positions of 250 frames of width 768 would take 5.0 ms in float32 and 2.6 in bfloat16;
prepared for the Fourier transform, always in float32, they take 2.4. On a Zen 4, alone, in milliseconds: of 49 / 99 /
149 / 199 / 249 frames 2.8 / 5.1 / 7.2 / 9.4 / 11.6 as a product in float32, 1.7 / 3.1 / 4.2 / 5.4 / 6.4 in bfloat16,
and 6.6 to 7.4 by the transform, however few. `SHORT` lies below both processors' crossings.

Measured on two CPU cores with AVX-512 before that:
- the gradient of positions of 8 × 375 frames of width 256 takes 37 ms by the Fourier transform, 1,600 by XLA's grouped
  convolution (a plain loop there), the forward pass of 4 × 750 frames of width 768 190 ms instead of 400, but that of
  1 × 250 frames 100 ms instead of 45 unless the kernel's spectrum is prepared, which is 7;
- data2vec's positions are short and stay convolutions: one of its five, 19 taps of width 768, takes 14 ms for 250
  frames and 63 for 1500, by the Fourier transform 53 and 77, by bands 83 and 132 (two cores of a shared machine);
- attention in 12 heads of 64, one by one: 250 frames take 1.5 ms instead of 1.0, 750 frames 7.9 instead of 8.4, 4 × 750
  31 instead of 35, 1500 frames 25 instead of 31, because one head's scores stay in the cache; where the process does
  not keep its memory (`runtime.memory`), 37 instead of 113. In training a head at a time needs 1 / heads of the memory;
- rows of a batch of four through HuBERT Base, one by one: of 5 s 674 ms instead of 644, of 15 s 2.09 s instead of 2.11,
  of 30 s 4.57 s instead of 4.97; so a corpus's utterances gain nothing from a batch, which pads.

An update of melhubert-mini, 8 × 7.5 s in float32, on two cores of an AMD EPYC with AVX-512 and AVX512-BF16 (Zen 4), by
XLA's derivatives and by our kernels (`experiments.latency --train`): 0.97 s and 0.76 with layers unrolled, 1.15 and
0.80 scanned, which was before layers were written out there. That of MelHuBERT 20 ms, 4 × 15 s, took 12.3 s and 6.7 GiB
scanned, and 10.7 s and 5.1 GiB written out, with faster kernels for the gradient of weights (`benchmarks.training`).

On two cores of an AMD EPYC (Zen 4) that others used too (load 6; medians of nine runs in turns, and the ratio): each of
512 channels convolved alone with 4 taps, 8 × 375 frames, takes 4.0 ms by products with shifted frames instead of 132 by
XLA's grouped convolution (40 times), its gradient 8.9 instead of 265 (30), in bfloat16 9.3 instead of 303; 31 taps of
256 channels 4.7 instead of 131 (28) and 54 instead of 400 (7), 64 taps 17 instead of 255 (15) and 177 instead of 759.

Likewise a scan of 512 channels with 16 numbers of state, 8 × 375 frames: 12 ms by our kernel instead of 105 by a loop
over frames (6 times), forwards and back 71 instead of 651 (9); 250 frames 1.2 instead of 27 (18) and 5.9 instead of 119
(21); one frame 0.04 instead of 0.10. An update of melhubert-mini with Mamba in three of six layers takes 1.6 s of
processor time instead of 3.2 by both, with Mamba-2 2.0 instead of 3.9 by the convolution alone; with attention 1.5.

Measured on an H200 in bfloat16, 16 × 749 frames: positions of width 768 by bands 0.52 ms, by the Fourier transform
0.81, by cuDNN's grouped convolution 1.21 alone and 18 inside the model, where XLA picks another of its kernels;
attention in 12 heads of 64 by flash 0.30 ms, all heads together 0.86.

No TPU was at hand. In bfloat16 and without dropout, Pallas' flash attention runs there from 1024 frames on, for its
memory: the scores of 16 such utterances in 12 heads are 0.8 GB. It was interpreted and lowered, not measured.
"""

from importlib import import_module
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from jaxssl.runtime import native

ROW = 1000  # frames of an utterance from which a batch goes row by row
WORTH = 1000  # frames of a batch from which the transforms of a positional kernel are paid back
HUGE = 1024  # frames of an utterance from which a TPU is spared its scores
FEW = 64  # taps whose products are written out: a program grows by each
SHORT = {"float32": 100, "bfloat16": 200}  # frames up to which positions are a product
LONG = 512  # frames of an utterance from which one head at a time is faster


def positions(frames: int) -> Literal["fourier", "banded", "plain"]:
    """Choose how a batch of that many frames is convolved with a kernel of parameters."""
    if jax.default_backend() == "cpu":
        return "fourier" if frames >= WORTH else "plain"
    return "banded" if nvidia() else "plain"


def prepared_positions() -> Literal["fourier", "banded"] | None:
    """Choose the form in which a positional kernel is prepared once; None: it stays what it is."""
    return "fourier" if jax.default_backend() == "cpu" else "banded" if nvidia() else None


def short(frames: int, dtype: Any) -> bool:
    """Choose whether our kernel convolves so few frames of an utterance with a prepared positional kernel."""
    return frames <= SHORT.get(jnp.dtype(dtype).name, 0)


def kernels() -> Literal["native", "XLA"]:
    """Choose whose kernels prepared models run."""
    return "native" if jax.default_backend() == "cpu" and native.ready() else "XLA"


def packs(*, int8: bool = False) -> bool:
    """Choose whether a prepared model's weights are packed for our kernels, those in int8 or others."""
    return kernels() == "native" and (native.fast_int8() if int8 else True)


def whole(dtype: Any) -> bool:
    """Choose whether our kernels multiply in whole numbers by weights that were prepared to run in a dtype."""
    return jnp.dtype(dtype) == jnp.bfloat16 and native.whole_bfloat16()


def learns() -> bool:
    """Choose whether models that are trained run on our kernels: on one device, for XLA would not spread their work."""
    return kernels() == "native" and jax.device_count() == 1


def scan(*, prepared: bool, learning: bool) -> Literal["native", "XLA"]:
    """Choose how a selective scan runs."""
    return "native" if learning or (prepared and kernels() == "native") else "XLA"


def depthwise(taps: int) -> Literal["shifted", "convolution"]:
    """Choose how channels are convolved, each alone: in a sum of products with shifted frames, if not of too many."""
    return "shifted" if jax.default_backend() == "cpu" and taps <= FEW else "convolution"


def quickest() -> tuple[Literal["float32", "bfloat16"], str]:
    """Choose the dtype in which a forward pass is quickest on this device; return it, and why, in one line.

    By AVX2 alone, as int16, bfloat16 was quicker on an Intel processor; others were not timed.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16", f"bfloat16: a {jax.default_backend().upper()} multiplies it fastest"
    if kernels() != "native":
        return "float32", "float32: our kernels, which bfloat16 needs, are not there (a C++ compiler builds them)"
    if native.fast_bfloat16():
        return "bfloat16", f"bfloat16: this processor has {native.tiers()['bfloat16']}"
    return "float32", "float32: this processor has neither AMX nor AVX512-BF16 nor VNNI"


def resolved(dtype: Any) -> jnp.dtype:
    """Return the dtype that is meant; of "auto" the quickest one."""
    return jnp.dtype(quickest()[0] if isinstance(dtype, str) and dtype == "auto" else dtype)


def attention(
    time: int, head_dim: int, dtype: jnp.dtype, *, prepared: bool = False, plain: bool = True
) -> Literal["native", "one by one", "flash", "pallas", "at once"]:
    """Choose how heads attend, without dropout and where nobody needs their maps.

    Where something is added to the scores (not `plain`), there is but XLA's way: kernels take no such array.
    """
    if prepared and plain and dtype in (jnp.float32, jnp.bfloat16) and kernels() == "native":
        return "native"
    if jax.default_backend() == "cpu":
        return "one by one" if time >= LONG else "at once"
    if not plain or dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8 or head_dim > 128:
        return "at once"
    if jax.default_backend() == "tpu":
        return "pallas" if time >= HUGE and dtype == jnp.bfloat16 else "at once"
    return "flash" if nvidia(8.0) else "at once"


def exported_positions() -> dict[str, Literal["fourier", "banded", "plain"]]:
    """Choose likewise in a program for lengths and devices that are not known yet, by `jax.lax.platform_dependent`."""
    return {"cpu": "fourier", "cuda": "banded", "default": "plain"}


def exported_attention() -> dict[str, Literal["one by one", "at once"]]:
    """Choose how heads attend in such a program."""
    return {"cpu": "one by one", "default": "at once"}


def sums() -> type | None:
    """Choose the dtype in which a plain product adds up; None: that of its operands.

    XLA's CPU code has fast bfloat16 products only of this kind, and GPUs add in float32 of themselves.
    """
    return jnp.float32 if jax.default_backend() == "cpu" else None


def blocks(size: int) -> Literal["gathered", "gpu", "tpu"]:
    """Choose how a map in blocks of a size is multiplied: by XLA's operations or by the kernel of a platform.

    On GPUs the kernel wants sizes that are powers of two, 16 or more, and Pallas's Triton backend.
    """
    match jax.default_backend():
        case "tpu":
            return "tpu"
        case "gpu" if size >= 16 and size & (size - 1) == 0 and has_triton():
            return "gpu"
    return "gathered"


def rows(batch: int, frames: int) -> Literal["one by one", "together"]:
    """Choose how a batch of rows of that many frames runs, without dropout."""
    if is_symbolic_dim(batch) or is_symbolic_dim(frames) or jax.default_backend() != "cpu":
        return "together"
    return "one by one" if batch > 1 and frames >= ROW else "together"


def together() -> int:
    """Choose how many utterances of similar length run together (`jaxssl.inference.encode`)."""
    return 1 if jax.default_backend() == "cpu" else 16


def has_triton() -> bool:
    """Tell whether this jax still has Pallas's Triton backend."""
    try:
        import_module("jax.experimental.pallas.triton")
    except ImportError:
        return False
    return True


def nvidia(capability: float = 0.0) -> bool:
    """Tell whether programs run on NVIDIA GPUs of at least that compute capability."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= capability
