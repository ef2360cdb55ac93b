"""Turn a PyTorch checkpoint into a model folder, without PyTorch and without running what the file contains.

    python tools/convert_torch.py CHECKPOINT OUT [--verify AUDIO …]

CHECKPOINT is a file of fairseq (HuBERT, ContentVec's legacy files, wav2vec 2.0, data2vec, fine-tuned or not), of s3prl
(DistilHuBERT too), of DPHuBERT, LightHuBERT, ARMHuBERT, MaskHuBERT, STaRHuBERT, FitHuBERT (these with a .yaml), WavLM
or the MelHuBERT study (pruned or not); a Hugging Face folder of HuBERT, wav2vec 2.0 (XLS-R and MMS too), WavLM,
data2vec, UniSpeech or UniSpeech-SAT, whatever class stands around the encoder, with a length adapter or not; a bare
state dict of these, or of torchaudio; or a Whisper, of which the encoder is kept: a folder of Hugging Face or
CTranslate2, or OpenAI's file. OUT gets `arch.json`, `params/`, `provenance.json`, and `ctc/` where the model was
fine-tuned.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxssl.runtime.ranges import Count, There

if not __package__:  # started as a file: find this project's packages beside tools/, not inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from compress.address import flatten
from jaxssl.convert.conversion import Converted, convert
from jaxssl.runtime.cli import command, console


@dataclass(frozen=True)
class Options:
    """Convert a PyTorch checkpoint into a model folder.

    Attributes:
        checkpoint: a .pt or .ckpt file, or a Hugging Face folder.
        out: the new folder.
        force: replace the model that is in OUT.
        stats: MelHuBERT's mean and deviation of each Mel bin (.npy, 2 × 40), to keep with the model.
        heads: attention heads, for state dicts and fine-tuned fairseq files, which do not say.
        config: the .yaml of an ARMHuBERT, STaRHuBERT or FitHuBERT; default: the one beside the checkpoint that fits it.
        subnet: of a LightHuBERT, as JSON or a file of it (embed_dim, heads_num, ffn_embed), or lighthubert-small or
            lighthubert-base; default: the largest.
        verify: audio to run through the source's own framework and ours; the differences are printed.
    """

    checkpoint: tyro.conf.Positional[There[Path]]
    out: tyro.conf.Positional[Path]
    force: bool = False
    stats: There[Path | None] = None
    heads: Count[int | None] = None
    config: There[Path | None] = None
    subnet: str | None = None
    verify: There[tuple[Path, ...]] = ()


def run(options: Options) -> None:
    """Convert, report, and verify where asked.

    Raises:
        InputError: see `convert`; or verification was asked for and not possible, or failed.
    """
    converted = convert(
        options.checkpoint,
        options.out,
        stats=options.stats,
        overwrite=options.force,
        heads=options.heads,
        config=options.config,
        subnet=options.subnet,
    )
    for line in _report(converted, options.out):
        console.print(line, markup=False)
    if options.verify:
        from tools.pytorch import verify  # only here: it looks for other frameworks

        for line in verify.compare(options.checkpoint, converted, options.verify, stats=options.stats):
            console.print(line, markup=False)


def _report(converted: Converted, out: Path) -> list[str]:
    layers = Counter((layer.heads, layer.ffn.size) for layer in converted.arch.layers)
    shape = ", ".join(f"{count} of {heads} heads and {ffn} FFN units" for (heads, ffn), count in layers.items())
    arrays = flatten(converted.params)
    total = sum(array.size for array in arrays.values())
    return [
        f"{converted.kind}: width {converted.arch.width}; layers: {shape}",
        f"kept {len(arrays)} arrays, {total:,} parameters",
        *(f"left behind: {name}" for name in converted.left_behind),
        *(f"note: {note}" for note in converted.notes),
        *(f"beside the model: {name}" for name in converted.extra),
        f"written to {out}",
    ]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, see `jaxssl.runtime.cli.command`."""
    return command(run, Options, __doc__, args=args, remember=False)


if __name__ == "__main__":
    sys.exit(main())
