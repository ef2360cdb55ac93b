"""Two thousand damaged inputs: each is read, or refused in one line; none runs anything, hangs or fills memory."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.processes import finish

SEED, COUNT, CORES = "2026", 2400, 2


@pytest.mark.slow
def test_every_damaged_input_is_read_or_refused_in_one_line():
    words = [("-m", "tests.fuzz.run", SEED, part, CORES, COUNT) for part in range(CORES)]
    with ThreadPoolExecutor(CORES) as side_by_side:
        children = list(side_by_side.map(lambda each: finish(*each), words))
    for child in children:
        assert child.returncode == 0, child.stderr[-3000:]
    lines = [json.loads(line) for child in children for line in child.stdout.splitlines()]
    wrong = [line for line in lines if isinstance(line, list)]
    assert not wrong, "\n".join(map(str, wrong[:20]))
    counts = [line["counts"] for line in lines]
    assert sum(count for found in counts for count in found.values()) == COUNT
    assert all(found["refused"] > 100 and found["read"] > 50 for found in counts)
