"""What `experiments.probe` asks of utterances: the right answers, who trains and who tests, what is resampled.

phones      what is said, as phones: by phone times, or by a lexicon from the text; silence is left out
characters  what is said, as letters, digits, apostrophes and spaces
speakers    who speaks
digits      which digit is spoken: by the text (ZERO to NINE, 0 to 9), or the name of FSDD's files

Parts: the corpus's own (`train`; `test`, else `valid`); of the spoken digits the official ones, takes 0 to 4 test; of
anything else every fourth speaker tests what is said, and a third of each speaker's sessions (their utterances, where
there is one session) tests who speaks.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compress.errors import InputError
from experiments.probes.listening import LENGTHS
from experiments.probes.probing import spoken
from jaxssl.data import corpora
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.lexicon import Lexicon, pronounce, unknown, words
from jaxssl.data.manifest import Utterance

PHONES, CHARACTERS, SPEAKERS, DIGITS = TASKS = "phones", "characters", "speakers", "digits"
WRITTEN = {PHONES, CHARACTERS}  # by CTC; the others are one class an utterance
SILENCE = {"SIL", "SP", ""}
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
NAMES = dict(zip("0123456789", WORDS, strict=True))
FSDD = re.compile(r"(?:(?P<a>\d)_[a-z]+_|[a-z]+-(?P<b>\d)-)(?P<take>\d+)")  # 7_theo_12, as published, or theo-7-0012
OFFICIAL = 5  # takes below it test
HELD_OUT = 4  # every fourth speaker
SESSIONS = 3  # a third of each speaker's sessions
PART = 3  # of what trains, a third as much tests
TRAIN, TEST = "train", "test"
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Question:
    """One task on a list of utterances.

    Attributes:
        task: one of `TASKS`.
        train: numbers of the utterances that train.
        test: of those that test.
        answers: utterance → symbols, or a single class.
        units: what the bootstrap resamples, of every utterance of the list, (utterances,): sentences where it is asked
            what is said, for the same words by other voices say little new; else utterances.
        notes: lines a reader of the report should see.
    """

    task: str
    train: np.ndarray
    test: np.ndarray
    answers: Mapping[int, tuple[str, ...]]
    units: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols that occur, sorted."""
        return tuple(sorted({s for i in (*self.train, *self.test) for s in self.answers[i]}))

    @property
    def used(self) -> np.ndarray:
        """Numbers of all utterances that train or test, ascending."""
        return np.sort(np.concatenate([self.train, self.test]))


def ask(task: str, utterances: Sequence[Utterance], *, lexicon: Lexicon | None, limit: int, seed: int) -> Question:
    """Pose a task.

    Args:
        task: one of `TASKS`.
        utterances: of the corpus.
        lexicon: where phones come from texts.
        limit: utterances that train at most; a third of it tests. They are drawn by `seed`.
        seed: of the draw.

    Raises:
        InputError: the corpus cannot answer, nothing trains, or fewer than two utterances test.
    """
    answers, notes = _answers(task, utterances, lexicon)
    known = {i: answer for i, answer in enumerate(answers) if answer}
    if not known:
        raise InputError(f"{task}: 0 of {len(utterances)} utterances have an answer; {_remedy(task)}")
    if (different := len({s for answer in known.values() for s in answer})) < 2:
        raise InputError(f"{task}: {different} answer in {len(known)} utterances; give speech with two or more")
    sides, more = _sides(task, {i: utterances[i] for i in known})
    rng = np.random.default_rng(seed)
    train, test = (_draw(sides, side, most, rng) for side, most in ((TRAIN, limit), (TEST, -(-limit // PART))))
    if task not in WRITTEN:
        learned, asked = {known[i] for i in train}, len(test)
        test = np.array([i for i in test if known[i] in learned], int)
        more += [f"{asked - len(test)} of {asked} tests left out, none of their class trains"] * (len(test) < asked)
    if not len(train) or len(test) < 2:
        counts = f"{len(train)} utterances to train and {len(test)} to test"
        raise InputError(f"{task}: {counts}; give 1 and 2 or more, for one test has no interval")
    units = [_sentence(u) if task in WRITTEN else u.id for u in utterances]
    told = tuple(f"{task}: {note}" for note in (*notes, *more))
    return Question(task, train, test, known, np.unique(units, return_inverse=True)[1], told)


def narrow(
    questions: Sequence[Question], utterances: Sequence[Utterance]
) -> tuple[tuple[Question, ...], tuple[Utterance, ...]]:
    """Leave out the utterances that no question is about, and number the others anew."""
    used = np.unique(np.concatenate([question.used for question in questions]))
    place = {old: new for new, old in enumerate(used.tolist())}

    def renumbered(question: Question) -> Question:
        train, test = (np.searchsorted(used, rows) for rows in (question.train, question.test))
        answers = {place[i]: answer for i, answer in question.answers.items() if i in place}
        return replace(question, train=train, test=test, answers=answers, units=question.units[used])

    return tuple(map(renumbered, questions)), tuple(utterances[i] for i in used.tolist())


def check_short(questions: Sequence[Question], utterances: Sequence[Utterance], *, longest: float) -> None:
    """Refuse tasks none of whose utterances that train has `longest` seconds at most.

    Raises:
        InputError: the message says how long the shortest is.
    """
    for question in questions:
        shortest = min(utterances[i].samples for i in question.train.tolist())
        if shortest > longest * SAMPLE_RATE:
            raise InputError(
                f"--longest {longest:g}: the shortest utterance that trains {question.task} has "
                f"{shortest / SAMPLE_RATE:.2f} s; give more"
            )


def open_speech(
    data: str, *, test: Path | None, split_file: Path | None, phones: Path | None, tasks: Sequence[str]
) -> tuple[tuple[Utterance, ...], list[str]]:
    """Find the speech, its parts named; also return lines that a reader of the report should see.

    Args:
        data: `embedded`, or a place that `jaxssl.data.corpora` reads.
        test: another place, which tests while all of `data` trains.
        split_file: of VoxCeleb.
        phones: a table of phone times.
        tasks: that will be asked.

    Raises:
        InputError: nothing there, or a speaker of `test` trains where it is asked what is said.
    """
    manifest = spoken() if data == EMBEDDED else corpora.read(data, phones=phones)
    if split_file is not None:
        manifest = corpora.with_parts(manifest, split_file)
    found = list(manifest.utterances)
    if test is not None:
        others = corpora.read(test).utterances
        shared = {u.speaker for u in found} & {u.speaker for u in others} - {""}
        if shared and (written := [task for task in tasks if task in WRITTEN]):
            some = f"{len(shared)} speakers of it train, the first is {min(shared)}"
            raise InputError(f"--test {test}: {some}; {written[0]} are tested on voices that never trained")
        found = [replace(u, split=part) for part, side in ((TRAIN, found), (TEST, others)) for u in side]
    kept = tuple(u for u in found if u.samples <= LENGTHS[-1])
    limit = LENGTHS[-1] // SAMPLE_RATE
    long = f"{len(found) - len(kept)} of {len(found)} utterances are longer than {limit} s: left out"
    return kept, [long] * (len(kept) < len(found))


def thinned(rows: Sequence[np.ndarray], question: Question, most: int) -> list[np.ndarray]:
    """Keep an even spread of at most `most` labels of the utterances that train, a third of it of those that test."""
    kept = [np.full_like(row, -1) for row in rows]
    for numbers, count in ((question.train, most), (question.test, -(-most // PART))):
        total, first = sum(int((rows[i] >= 0).sum()) for i in numbers.tolist()), 0
        step = max(-(-total // count), 1)
        for i in numbers.tolist():
            known = np.flatnonzero(rows[i] >= 0)
            chosen = known[-first % step :: step]
            kept[i][chosen] = rows[i][chosen]
            first += len(known)
    return kept


def spelled(text: str) -> tuple[str, ...]:
    """Return a text's characters: capitals, digits, apostrophes, and single spaces between words.

    >>> "".join(spelled("It's  late, isn't it?"))
    "IT'S LATE ISN'T IT"
    """
    return tuple(" ".join(words(text)))


def digit(utterance: Utterance) -> tuple[str, ...]:
    """Return the digit that is spoken, as a word; nothing where it is none."""
    text = utterance.text.strip().upper()
    match = FSDD.fullmatch(utterance.path.stem)
    found = NAMES.get(text, text) if text or not match else NAMES[match["a"] or match["b"]]
    return (found,) if found in WORDS else ()


def _answers(
    task: str, utterances: Sequence[Utterance], lexicon: Lexicon | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    if task == PHONES and lexicon is not None:
        return _by_lexicon(utterances, lexicon)
    ways: dict[str, Callable[[Utterance], tuple[str, ...]]] = {
        PHONES: lambda u: tuple(p.label for p in u.phones if p.label.upper() not in SILENCE),
        CHARACTERS: lambda u: spelled(u.text),
        SPEAKERS: lambda u: (u.speaker,) if u.speaker else (),
        DIGITS: digit,
    }
    if task not in ways:
        raise InputError(f"--task {task}: there are {', '.join(TASKS)}")
    found = [ways[task](u) for u in utterances]
    missing = sum(not answer for answer in found)
    return found, [f"{missing} of {len(found)} utterances have no answer and are left out"] * (missing > 0)


def _by_lexicon(utterances: Sequence[Utterance], lexicon: Lexicon) -> tuple[list[tuple[str, ...]], list[str]]:
    lacking = unknown((u.text for u in utterances), lexicon)
    out = [bool(unknown([u.text], lexicon)) for u in utterances]
    found = [() if gone else pronounce(u.text, lexicon) for u, gone in zip(utterances, out, strict=True)]
    some = ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5)
    told = f"the lexicon lacks {len(lacking)} words ({some}); {sum(out)} of {len(out)} utterances are left out"
    return found, [told] * bool(lacking)


def _sides(task: str, known: Mapping[int, Utterance]) -> tuple[dict[int, str], list[str]]:
    """Say which utterances train and which test; those that do neither are missing. Also say how that was found."""
    parts = {u.split for u in known.values()}
    for tested in (TEST, "valid"):
        if {TRAIN, tested} <= parts:
            names = {TRAIN: TRAIN, tested: TEST}
            return {i: names[u.split] for i, u in known.items() if u.split in names}, []
    takes = {i: FSDD.fullmatch(u.path.stem) for i, u in known.items()}
    if all(takes.values()):
        return {i: TEST if m and int(m["take"]) < OFFICIAL else TRAIN for i, m in takes.items()}, []
    if task == SPEAKERS:
        return _by_session(known)
    speakers = sorted({u.speaker for u in known.values()})
    if len(speakers) < 2 or "" in speakers:
        tested_rows = list(known)[HELD_OUT - 1 :: HELD_OUT] or list(known)[-1:]
        note = f"{len(speakers) - ('' in speakers)} known speaker(s): every fourth utterance tests, the voices trained"
        return {i: TEST if i in tested_rows else TRAIN for i in known}, [note]
    held = set(speakers[HELD_OUT - 1 :: HELD_OUT] or speakers[-1:])
    note = f"{len(held)} of {len(speakers)} speakers test, none of them trained"
    return {i: TEST if u.speaker in held else TRAIN for i, u in known.items()}, [note]


def _by_session(known: Mapping[int, Utterance]) -> tuple[dict[int, str], list[str]]:
    """Hold out a third of each speaker's sessions, the folders of their files; of one session, of its utterances."""
    sessions: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, u in known.items():
        sessions[u.speaker][str(u.path.parent)].append(i)
    single = 0
    sides: dict[int, str] = {}
    for groups in sessions.values():
        parts = list(groups.values())
        if len(parts) == 1:
            single += 1
            parts = [[i] for i in parts[0]]
        held = parts[len(parts) - max(len(parts) // SESSIONS, 1) :] if len(parts) > 1 else []
        sides |= {i: TRAIN for part in parts for i in part} | {i: TEST for part in held for i in part}
    note = f"{single} of {len(sessions)} speakers have one session, which may tell them as well as the voice does"
    return sides, [note] * (single > 0)


def _draw(sides: Mapping[int, str], side: str, most: int, rng: np.random.Generator) -> np.ndarray:
    rows = np.array([i for i, where in sides.items() if where == side], int)
    return np.sort(rng.permutation(rows)[:most])


def _sentence(utterance: Utterance) -> str:
    return utterance.text or utterance.id


def _remedy(task: str) -> str:
    return {
        PHONES: "give phone times (phones.tsv, TextGrids, --phones) or texts and a --lexicon",
        CHARACTERS: "give texts (manifest.tsv, *.trans.txt)",
        SPEAKERS: "give a folder for each speaker, or a manifest.tsv with a column speaker",
    }.get(task, "give texts ZERO to NINE, or files named as 7_theo_12")
