"""A few of the kills and full disks that `tests.campaign.kills` and `tests.campaign.disk` make by the dozen."""

import json

import pytest

from tests.campaign import disk
from tests.campaign.kills import campaign
from tests.campaign.lines import COMMANDS, differences
from tests.processes import ROOT, finish

SMALL = tuple(each for each in COMMANDS if each.name in ("prepare", "lowrank"))


@pytest.mark.slow
def test_killed_commands_end_as_those_that_nobody_killed(tmp_path):
    lines = []
    counts = campaign("0", 4, SMALL, tmp_path, tell=lambda line, flush: lines.append(line))
    assert counts["wrong"] == 0, lines
    assert counts["kills"] >= 4


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_no_work_is_lost():
    if not disk.possible():
        pytest.skip("needs a user who may mount a disk of memory (unshare --map-root-user --mount)")
    done = finish("-m", "tests.campaign.disk", "0", "2", "prepare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"full": 2, "runs": 2}


def test_a_command_dies_at_the_change_that_was_named(tmp_path):
    """The first changes are made, the deadly one is not; unkilled, they are counted."""
    (tmp_path / "writes.py").write_text(
        "from pathlib import Path\n"
        "out = Path('out')\n"
        "out.mkdir()\n"
        "for name in 'abc':\n"
        "    (out / name).write_text('x')\n"
        "(out / 'a').rename(out / 'd')\n"
        "Path('elsewhere').write_text('x')\n"
    )
    words = ["-m", "tests.campaign.dying", tmp_path / "out"]
    for number, left in ((3, ["a"]), (5, ["a", "b", "c"]), (0, ["b", "c", "d"])):
        for path in (tmp_path / "out").glob("*"):
            path.unlink()
        if (tmp_path / "out").is_dir():
            (tmp_path / "out").rmdir()
        done = finish(*words, number, "writes", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
        assert done.returncode == (-9 if number else 0), done.stderr
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == left
    assert (tmp_path / "out.changes").read_text() == "5"


def test_what_differs_between_two_ends_is_named():
    one, two = {"a": 1, "b": {"x": 2}, "c": 3}, {"a": 1, "b": {"x": 4}, "d": 3}
    assert [line.partition(":")[0] for line in differences(one, two)] == ["b", "c", "d"]
    assert differences(one, dict(one)) == []
