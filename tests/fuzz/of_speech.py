"""Corpora, their tables and what is prepared of them, and audio."""

from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from jaxssl.data import alignments, audio, corpora, features, lexicon, prepared, study
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.runtime import files
from tests.fuzz import mutate
from tests.fuzz.spoil import Target, as_json, as_text, one_of

MANIFEST = "id\tpath\tsamples\tspeaker\tsplit\ttext\n" + "".join(
    f"u{i}\tu{i}.wav\t{1600 + i}\ts{i % 2}\t{'valid' if i == 3 else 'train'}\thello there {i}\n" for i in range(4)
)
PHONES = "id\tstart\tend\tlabel\n" + "".join(
    f"u{i}\t{j / 10}\t{(j + 1) / 10}\tAH\n" for i in range(4) for j in range(3)
)
TEXTGRID = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 1.5\ntiers? <exists>\nsize = 2\nitem []:\n'
    + "".join(
        f'    item [{t}]:\n        class = "IntervalTier"\n        name = "{name}"\n        xmin = 0\n'
        "        xmax = 1.5\n"
        "        intervals: size = 2\n        intervals [1]:\n            xmin = 0\n            xmax = 0.7\n"
        '            text = "a"\n        intervals [2]:\n            xmin = 0.7\n            xmax = 1.5\n'
        '            text = ""\n'
        for t, name in enumerate(("words", "phones"), 1)
    )
)
LEXICON = ";;; a comment\nHELLO  HH AH0 L OW1\nTHERE  DH EH1 R\nTHERE(2)  DH AH0 R\n"
PARTS = "1 id10001/video/00001.wav\n2 id10001/video/00002.wav\n3 id10002/video/00001.wav\n"


def tables() -> list[Target]:
    texts = {"manifest.tsv": as_text, "phones.tsv": as_text}
    return [
        Target("manifest", partial(_corpus, phones=True), one_of(texts), corpora.read, 4),
        Target(
            "textgrid",
            partial(_written, {"a.TextGrid": TEXTGRID}),
            one_of({"a.TextGrid": as_text}),
            lambda f: alignments.read_textgrid(f / "a.TextGrid"),
            2,
        ),
        Target(
            "lexicon",
            partial(_written, {"a.txt": LEXICON}),
            one_of({"a.txt": as_text}),
            lambda f: lexicon.read_lexicon(f / "a.txt"),
        ),
        Target(
            "places",
            partial(_corpus, phones=False),
            one_of({"manifest.tsv": as_text}),
            lambda f: [audio.read(p) for p in audio.find([f / "manifest.tsv"])],
            2,
        ),
        Target(
            "parts",
            _voxceleb,
            one_of({"iden_split.txt": as_text}),
            lambda f: corpora.with_parts(corpora.read(f), f / "iden_split.txt"),
        ),
        Target("transcripts", _librispeech, one_of({"1/1-2.trans.txt": as_text}), corpora.read),
        Target("prepared", _prepared, one_of(PREPARED), _use_prepared, 6),
        Target(
            "prepared anew", _prepared, one_of({".features.json": as_json, "manifest.tsv": as_text}), _prepare_again, 2
        ),
        Target("study", _study, one_of(STUDY), lambda f: _used(study.read_study(f / "train.csv")), 4),
    ]


def _written(contents: dict[str, str], folder: Path) -> None:
    for name, text in contents.items():
        (folder / name).write_text(text)


def _corpus(folder: Path, *, phones: bool) -> None:
    _written({"manifest.tsv": MANIFEST} | ({"phones.tsv": PHONES} if phones else {}), folder)
    for i in range(4):
        soundfile.write(folder / f"u{i}.wav", np.sin(np.arange(1600 + i)) / 2, 16_000)


def _voxceleb(folder: Path) -> None:
    for line in PARTS.splitlines():
        path = folder / line[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(1600)) / 2, 16_000)
    (folder / "iden_split.txt").write_text(PARTS)


def _librispeech(folder: Path) -> None:
    (folder / "1").mkdir()
    soundfile.write(folder / "1/1-2-0.flac", np.sin(np.arange(1600)) / 2, 16_000)
    (folder / "1/1-2.trans.txt").write_text("1-2-0 HELLO THERE\n1-2-1 YOU\n")


PREPARED = {
    **dict.fromkeys(("features.npy", "offsets.npy", "stats.npy"), mutate.npy),
    **{f"labels/a{end}": mutate.npy for end in (".npy", ".offsets.npy", ".centres.npy")},
    **{"labels/a.json": as_json, "manifest.tsv": as_text, "phones.tsv": as_text},
}


def _prepared(folder: Path) -> None:
    _corpus(folder, phones=True)
    counts = [prepared.frame_count(1600 + i) for i in range(4)]
    draw = np.random.default_rng(0)
    np.save(folder / "offsets.npy", np.cumsum([0, *counts]))
    np.save(folder / "features.npy", draw.standard_normal((sum(counts), 40)).astype(np.float32))
    (folder / "stats.npy").write_bytes(stats_bytes(Stats(np.zeros(40, np.float32), np.ones(40, np.float32))))
    rows = [draw.integers(0, 5, count) for count in counts]
    info = {"source": "mfcc", "inertia": 1.0, "purity": 0.5}
    prepared.write_labels(folder, "a", rows, clusters=5, period_ms=10, info=info, centres=np.zeros((5, 3), np.float32))
    files.write_json(folder / ".features.json", {"corpus": "0", "storage": "float32", "grids": 1, "done": 1})


def _use_prepared(folder: Path) -> object:
    return _used(prepared.load(folder))


def _used(corpus: prepared.Prepared) -> object:
    labels = corpus.labels()
    return [(corpus.inputs(i, stack=2).sum(), labels[i].sum()) for i in range(len(corpus))]


def _prepare_again(folder: Path) -> object:
    return features._journal(folder), corpora.read(folder)


STUDY = {
    "train.csv": lambda c, d: as_text(c.replace(b",", b"\t"), d).replace(b"\t", b","),
    "mean-std.npy": mutate.npy,
    "f0.npy": mutate.npy,
    "l0.npy": mutate.npy,
}


def _study(folder: Path) -> None:
    lines = ["file_path,label_path,length"]
    for i in range(2):
        np.save(folder / f"f{i}.npy", np.zeros((10, 40), np.float32))
        np.save(folder / f"l{i}.npy", np.arange(10) % 4)
        lines.append(f"f{i}.npy,l{i}.npy,10")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    np.save(folder / "mean-std.npy", np.ones((2, 40), np.float32))


def speech() -> list[Target]:
    kinds = [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_16"),
        ("AU", "FLOAT"),
        ("MP3", "MPEG_LAYER_III"),
    ]
    return [
        Target(f"{kind} {sub}", partial(_say, kind, sub), one_of({f"a.{kind.lower()}": mutate.damaged}), _hear, 2)
        for kind, sub in kinds
    ]


def _say(kind: str, subtype: str, folder: Path) -> None:
    samples = np.sin(np.arange(2 * 4000).reshape(-1, 2) / 5) / 2
    soundfile.write(folder / f"a.{kind.lower()}", samples, 16_000, format=kind, subtype=subtype)


def _hear(folder: Path) -> object:
    (path,) = audio.find([folder])
    heard = audio.read(path)
    if not np.isfinite(heard.samples).all():
        raise AssertionError("samples that are not finite were let through")
    return corpora.read(path)
