"""Every setting of every command says what it may be, and is held to it before any work."""

import dataclasses
import re
import types
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints

import pytest

from compress.errors import InputError
from docs.commands import GROUPS
from jaxssl.runtime import cli, ranges
from tests.settings import settings_of

COMMANDS = [name for names in GROUPS.values() for name in names]
HOSTILE = (float("nan"), float("inf"), float("-inf"), -1, 0, 10**20, 1e300)


@pytest.fixture(scope="module")
def commands():
    """The settings of each command, by its name; nothing is run."""
    return {name: settings_of(name) for name in COMMANDS}


def plain(hint):
    """The types that a setting's values have, members of tuples and unions too."""
    if getattr(hint, "__metadata__", None):
        return plain(hint.__origin__)
    if get_origin(hint) in (tuple, Union, types.UnionType):
        return {kind for each in get_args(hint) if each is not Ellipsis for kind in plain(each)}
    return {hint}


def numbers(kind):
    """The settings of a command that are numbers, with whether they are several."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if plain(hint) & {int, float}:
            bare = get_type_hints(kind)[name]
            yield name, tuple in (get_origin(bare), *map(get_origin, get_args(bare)))


def with_one(kind, name, value):
    """Settings of which only one is given."""
    settings = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(settings, field.name, value if field.name == name else None)
    return settings


def test_every_number_is_in_its_range_or_refused(commands):
    """In one line that names the flag, the value and the range."""
    walked = 0
    for kind in commands.values():
        rules = dict(ranges.rules(kind))
        for name, several in numbers(kind):
            assert name in rules, f"{kind.__module__}: {name} does not say what numbers it may be"
            for value in HOSTILE:
                walked += 1
                settings = with_one(kind, name, (value,) if several else value)
                if value in rules[name]:
                    assert abs(value) <= rules[name].high < 2**33
                    ranges.check(settings)
                    continue
                with pytest.raises(InputError) as caught:
                    ranges.check(settings)
                assert str(caught.value) == f"{ranges.flag(name)} {value}: give {rules[name].form}"
    assert walked > 1000


def test_defaults_are_in_their_ranges(commands):
    for kind in commands.values():
        for field in dataclasses.fields(kind):
            if field.default is not dataclasses.MISSING:
                ranges.check(with_one(kind, field.name, field.default))


def test_what_is_read_must_be_there(commands):
    """Every path that a command has is written to, or says that it must be there."""
    written = {"out", "pack"}
    for kind in commands.values():
        rules = dict(ranges.rules(kind))
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if Path in plain(hint) and name not in written:
                settings = with_one(kind, name, Path("nowhere"))
                with pytest.raises(InputError, match="nowhere: no such file or folder"):
                    ranges.check(settings)
                assert name in rules


LINES = [
    ("pretrain", "--crop nan", "--crop nan: give 0.025 to 86400"),
    ("pretrain", "--crop inf", "--crop inf: give"),
    ("pretrain", "--shortest nan", "--shortest nan: give 0 to 86400"),
    ("pretrain", "--keep -1", "--keep -1: give 1 to"),
    ("pretrain", "--seed 100000000000000000000", "--seed 100000000000000000000: give 0 to 4294967295"),
    ("pretrain", "--steps nan", "--steps.*'nan'.*give 1 to"),
    ("pretrain", "--steps " + "9" * 5000, "--steps"),
    ("pretrain", "--stps 3", "Unrecognized options: --stps"),
    ("pretrain", "--dtype int8", "--dtype.*Expected one of"),
    ("blocks", "--seed -1", "--seed -1: give 0 to"),
    ("blocks", "--seconds 100000000000000000000", "--seconds 1e[+]20: give 0.025 to 3600"),
    ("lowrank", "--seconds nan", "--seconds nan: give"),
    ("lowrank", "--learning-rate nan", "--learning-rate nan: give above 0, to"),
    ("lowrank", "--batch 0", "--batch 0: give 1 to"),
    ("lowrank", "--budget params=nan", "--budget params=nan: write params="),
    ("plan", "--held-out nowhere", "--held-out nowhere: no such file or folder"),
    ("plan", "--budget rtf=-5%", "--budget rtf=-5%: write rtf="),
    ("probe", "--longest -1", "--longest -1.0: give 0 to"),
    ("probe", "--rate nan", "--rate nan: give"),
    ("int8", "--seconds 0", "--seconds 0.0: give"),
    ("combine", "--plan rows=" + "9" * 400, "--plan rows=9+: write KIND=VALUE"),
    ("pretrain", "--out=", "--out: an empty word"),
    ("tradeoff", ". --share 1e400", "--share inf: give above 0, to"),
]


@pytest.mark.parametrize(("name", "words", "message"), LINES)
def test_a_command_line_is_refused_in_one_line(commands, name, words, message, capsys):
    def run(_):
        raise AssertionError("work has begun")

    code = cli.command(run, commands[f"experiments.{name}"], "", args=words.split(), remember=False)
    told = capsys.readouterr().err
    assert code == 2
    assert len(told.splitlines()) == 1
    assert len(told) < 2100
    assert re.search(message, told)


@pytest.mark.parametrize("words", [("--out", ""), ("",), ("--audio", "", "a")])
def test_empty_words_are_refused(commands, words, capsys):
    assert cli.command(lambda _: None, commands["experiments.lowrank"], "", args=words, remember=False) == 2
    assert "an empty word" in capsys.readouterr().err


def test_helps_show_ranges(commands, capsys):
    with pytest.raises(SystemExit) as left:
        cli.read(commands["experiments.blocks"], ["--help"])
    assert left.value.code == 0
    assert "0 to below 1" in " ".join(capsys.readouterr().out.replace("│", " ").split())
