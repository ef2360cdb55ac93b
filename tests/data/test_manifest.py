"""Corpora from every layout there is, and the lines and files that cannot be used, named."""

import dataclasses

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data.alignments import read_phones, read_textgrid
from jaxssl.data.audio import read as read_audio
from jaxssl.data.corpora import read
from jaxssl.data.manifest import Manifest, Segment, Utterance, header_length, part, split, unique, write
from jaxssl.data.prepared import frame_count

SETS = {  # utterances, speakers, whole seconds, with text, with phones: from the data's own description
    "librispeech_train_clean_251": (251, 251, 3141, 1, 0),
    "librispeech_test_other_10x10": (100, 10, 767, 3, 0),
    "fsdd_600": (600, 6, 261, 600, 0),
    "librivox_austen_5": (5, 1, 25, 5, 5),
    "mfa_tests_4": (4, 2, 82, 4, 3),
    "librispeech_examples_3": (3, 3, 30, 0, 0),
}


def sound(path, *, samples=1600, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(size=samples) * 0.1, rate)
    return path


def corpus(count, *, speakers=3):
    return Manifest(tuple(Utterance(f"u{i}", f"u{i}.wav", 400 + i, f"s{i % speakers}") for i in range(count)))


@pytest.mark.parametrize("name", SETS)
def test_every_set_of_real_speech(shared, name):
    found = read(shared / "speech" / name)
    known = found.utterances
    counts = len(known), len({u.speaker for u in known}), round(found.seconds)
    assert (*counts, sum(bool(u.text) for u in known), sum(bool(u.phones) for u in known)) == SETS[name]
    assert all(header_length(u.path) == u.samples for u in known[:20])


@pytest.mark.parametrize("name", ["librivox_austen_5", "mfa_tests_4", "fsdd_600"])
def test_librispeech_layout_tells_what_the_manifest_tells(shared, name, tmp_path):
    """Without its manifest a set in LibriSpeech's layout gives the same ids, lengths, speakers and texts."""
    told = read(shared / "speech" / name).utterances
    for folder in (shared / "speech" / name).iterdir():
        if folder.is_dir():
            (tmp_path / folder.name).symlink_to(folder)
    files = list(tmp_path.glob("*/*/*.flac"))
    found = {u.id: u for u in read([str(tmp_path / "*/*/*.flac")]).utterances}
    assert len(files) == len(found) == len(told)
    for u in told:
        same = found[u.id]
        transcript = next(u.path.parent.glob("*.trans.txt"), None)
        assert (same.samples, same.speaker, same.text) == (u.samples, u.speaker, u.text if transcript else "")


def test_phones_of_real_speech_lie_in_it(shared):
    for name in ("librivox_austen_5", "mfa_tests_4"):
        for u in read(shared / "speech" / name).utterances:
            for before, after in zip(u.phones, u.phones[1:], strict=False):
                assert before.start < before.end == pytest.approx(after.start, abs=0.011)
            assert not u.phones or 0 <= u.phones[0].start < u.phones[-1].end <= u.samples / 16000 + 0.02


def test_named_phones_replace_those_beside(shared):
    folder = shared / "speech/mfa_tests_4"
    found = {u.id: u.phones for u in read(folder, phones=folder / "phones_forced.tsv").utterances}
    assert found["61-70968-0000"][:2] == (Segment(0.0, 0.25, "SIL"), Segment(0.25, 0.3, "HH"))
    assert not found["michael-1-0000"]


def test_any_folder_glob_and_file(tmp_path):
    for name in ("a/1.wav", "a/2.flac", "b/1.wav", "b/deep/3.ogg"):
        sound(tmp_path / name)
    (tmp_path / "a/._1.wav").write_bytes(b"")
    found = {u.id: u.speaker for u in read(tmp_path).utterances}
    assert found == {"a/1": "a", "a/2": "a", "b/1": "b", "b/deep/3": "b"}
    flat = read(tmp_path / "a").utterances
    assert [(u.id, u.speaker, u.samples) for u in flat] == [("1", "", 1600), ("2", "", 1600)]
    globbed = read(str(tmp_path / "*/1.wav")).utterances
    assert [(u.id, u.speaker) for u in globbed] == [("a/1", "a"), ("b/1", "b")]
    assert [u.id for u in read([tmp_path / "a/2.flac", tmp_path / "b/deep"]).utterances] == ["2", "3"]


@pytest.mark.parametrize(
    ("samples", "rate"), [(8001, 8000), (44101, 44100), (22049, 22050), (48000, 48000), (999, 16000)]
)
def test_lengths_from_headers_are_those_after_resampling(tmp_path, samples, rate):
    path = sound(tmp_path / "a.wav", samples=samples, rate=rate)
    assert header_length(path) == len(read_audio(path).samples)


def test_what_is_written_is_read_back(tmp_path):
    inside, outside = sound(tmp_path / "corpus/x/a b.wav"), sound(tmp_path / "else/ü.wav")
    phones = (Segment(0.1, 0.1 + 0.2, "AH0"), Segment(1 / 3, 0.4, '"'))
    given = Manifest(
        (
            Utterance("one", inside, 1600, "s", 'say "tab"', "train", phones),
            Utterance("two", outside, 1600),
        )
    )
    path = write(given, tmp_path / "corpus")
    assert read(path) == read(tmp_path / "corpus") == given
    lines = path.read_text().splitlines()
    assert lines[1].split("\t")[1] == "x/a b.wav"
    assert lines[2].split("\t")[1] == str(outside)
    write(Manifest(given.utterances[1:]), tmp_path / "corpus")
    assert not (tmp_path / "corpus/phones.tsv").exists()


def test_line_breaks_in_texts_become_spaces_and_in_names_are_refused(tmp_path):
    file = sound(tmp_path / "a.wav")
    write(Manifest((Utterance("a", file, 1600, text="two\nlines\there"),)), tmp_path)
    assert read(tmp_path).utterances[0].text == "two lines here"
    before = (tmp_path / "manifest.tsv").read_bytes()
    with pytest.raises(InputError, match="tab or a line break"):
        write(Manifest((Utterance("a\tb", file, 1600),)), tmp_path)
    assert (tmp_path / "manifest.tsv").read_bytes() == before


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_speaker", [False, True])
def test_a_split_is_a_partition(seed, by_speaker):
    whole = corpus(50, speakers=10)
    parts = split(whole, valid=0.2, seed=seed, by_speaker=by_speaker)
    train, valid = part(parts, "train").utterances, part(parts, "valid").utterances
    assert [u.id for u in parts.utterances] == [u.id for u in whole.utterances]
    assert len(valid) == 10
    assert not {u.id for u in train} & {u.id for u in valid}
    if by_speaker:
        assert not {u.speaker for u in train} & {u.speaker for u in valid}


def test_a_split_follows_from_ids_and_seed_alone():
    whole = corpus(40)
    shuffled = Manifest(tuple(whole.utterances[i] for i in np.random.default_rng(5).permutation(40)))
    drawn = [{u.id for u in part(split(m, valid=0.25, seed=1), "valid").utterances} for m in (whole, shuffled)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != {u.id for u in part(split(whole, valid=0.25, seed=2), "valid").utterances}
    assert len(part(split(corpus(2), valid=0.01, seed=0), "valid").utterances) == 1
    assert len(part(split(corpus(2), valid=0.99, seed=0), "train").utterances) == 1


@pytest.mark.parametrize(
    ("count", "valid", "by_speaker", "message"),
    [
        (9, 0.0, False, "use more than 0"),
        (9, 1.0, False, "0"),
        (1, 0.5, False, "1 known utterances"),
        (9, 0.5, True, "1 "),
    ],
)
def test_splits_that_cannot_be(count, valid, by_speaker, message):
    with pytest.raises(InputError, match=message):
        split(corpus(count, speakers=1), valid=valid, seed=0, by_speaker=by_speaker)


def test_unknown_speakers_and_parts_are_told():
    nameless = Manifest(tuple(dataclasses.replace(u, speaker="") for u in corpus(4).utterances))
    with pytest.raises(InputError, match="0 known speakers in 4"):
        split(nameless, valid=0.5, seed=0, by_speaker=True)
    with pytest.raises(InputError, match="'test'; splits: train, valid"):
        part(split(corpus(4), valid=0.5, seed=0), "test")


def test_no_utterance_twice(tmp_path):
    file = sound(tmp_path / "a.wav")
    with pytest.raises(InputError, match="1 ids .* the first is a"):
        unique([Utterance("a", file, 1600), Utterance("a", sound(tmp_path / "b.wav"), 1600)], "here")
    (tmp_path / "soft.wav").symlink_to(file)
    with pytest.raises(InputError, match="1 files stand for more than one"):
        unique([Utterance("a", file, 1600), Utterance("b", tmp_path / "soft.wav", 1600)], "here")
    with pytest.raises(InputError, match="stand for more than one"):
        read([tmp_path / "a.wav", tmp_path / "a.wav"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "must name a column path"),
        ("file\na.wav\n", "must name a column path"),
        ("path\n", "no utterances"),
        ("path\ngone.wav\n", "1 of 1 files are missing, the first is .*gone.wav"),
        ("path\tsamples\na.wav\tmany\n", "line 2: samples is 'many'"),
        ("path\tsamples\na.wav\t-5\n", "line 2: samples is '-5'"),
        ("path\tsamples\na.wav\n", "line 2: 1 columns, the first line names 2"),
        ("path\na.wav\tmore\tand more\n", "line 2: 3 columns, the first line names 1"),
        ("id\tpath\nx\ta.wav\nx\tb.wav\n", "1 ids stand for more than one utterance of 2, the first is x"),
        ("path\na.wav\na.wav\n", "stand for more than one"),
        ("path\n\xff\n".encode("latin1"), "UTF-8"),
    ],
)
def test_bad_manifests(tmp_path, table, message):
    sound(tmp_path / "a.wav"), sound(tmp_path / "b.wav")
    (tmp_path / "manifest.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(InputError, match=message) as found:
        read(tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id\tstart\tlabel\na\t0\tX\n", "a column end or end_s or duration or dur_s"),
        ("id\tstart\tend\tlabel\na\tsoon\t1\tX\n", "line 2: a time is 'soon'"),
        ("id\tstart\tend\tlabel\na\t0\tnan\tX\n", "line 2: a time is 'nan'"),
        ("id\tstart\tend\tlabel\na\t0\t1\tX\na\t2\t1\tX\n", "line 3: a phone from 2.0 s to 1.0 s"),
        ("id\tstart\tend\tlabel\nz\t0\t1\tX\n", "0 of its 1 utterances are in the corpus, the first is z"),
    ],
)
def test_bad_phone_tables(tmp_path, table, message):
    sound(tmp_path / "a.wav")
    (tmp_path / "manifest.tsv").write_text("path\na.wav\n")
    (tmp_path / "phones.tsv").write_text(table)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_phone_tables_of_every_form_say_the_same(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "manifest.tsv").write_text("path\na.wav\n")
    forms = (
        "id\tstart\tend\tlabel\na\t0.5\t0.56\tT\na\t0\t0.5\t\n",
        "utt\tstart_s\tdur_s\tphone\tword\na\t0.50\t0.06\tT\tit\na\t0.00\t0.50\tSIL\t<sil>\n",
        "path\tstart\tend\tlabel\na.wav\t0\t0.5\tSIL\na.wav\t0.5\t0.56\tT\n",
    )
    for form in forms:
        (tmp_path / "phones.tsv").write_text(form)
        assert read(tmp_path).utterances[0].phones == (Segment(0.0, 0.5, "SIL"), Segment(0.5, 0.56, "T"))
    assert list(read_phones(tmp_path / "phones.tsv")) == ["a.wav"]


LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1
        points: size = 1
        points [1]:
            number = 0.25
            mark = "a 5 ""b"""
    item [2]:
        class = "IntervalTier"
        name = "Anna - phones"
        xmin = 0
        xmax = 1
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1
            text = "say ""7 x"" 9"
'''


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrids_long_and_short(tmp_path, encoding):
    file = tmp_path / "a.TextGrid"
    file.write_bytes(LONG.encode(encoding))
    expected = (Segment(0.0, 0.5, "SIL"), Segment(0.5, 1.0, 'say "7 x" 9'))
    assert read_textgrid(file) == expected
    short = '"ooTextFile"\n"TextGrid"\n0\n1\n<exists>\n1\n"IntervalTier"\n"phones"\n0\n1\n2\n0\n0.5\n""\n0.5\n1\n'
    file.write_bytes((short + '"say ""7 x"" 9"\n').encode(encoding))
    assert read_textgrid(file) == expected
    assert read_textgrid(file, tier="words") == ()


@pytest.mark.parametrize("cut", [20, 60, 90, 250, 400, 600, -2])
def test_a_textgrid_cut_short_is_refused(tmp_path, cut):
    (tmp_path / "a.TextGrid").write_text(LONG[:cut])
    with pytest.raises(InputError, match="TextGrid"):
        read_textgrid(tmp_path / "a.TextGrid")


@pytest.mark.parametrize(
    ("place", "message"),
    [("gone", "no such file or folder"), ("*.wav", "0 of the 0 names"), ("empty", "no audio in this")],
)
def test_nothing_there(tmp_path, place, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        read(tmp_path / place)
    with pytest.raises(InputError, match="no audio"):
        read([])


def test_files_that_are_no_audio_are_named(tmp_path):
    (tmp_path / "a.wav").write_text("words")
    with pytest.raises(InputError, match="a.wav: not readable as audio"):
        read(tmp_path)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98)])
def test_frame_count(samples, frames):
    assert frame_count(samples) == frames
