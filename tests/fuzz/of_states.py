"""Training states, and what the processes of a run say to each other."""

import json
import shutil
import socket
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np

from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.model import shapes
from jaxssl.runtime import seal
from jaxssl.training import lifeline, rollcall
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.resume import PARTS, Checkpoints
from jaxssl.training.step import State, start
from tests.archs import MEL
from tests.data.test_batches import loader
from tests.fuzz import mutate
from tests.fuzz.spoil import Draw, Target, as_json, as_text

SMALL = replace(MEL, layers=MEL.layers[:1])


def states() -> list[Target]:
    hello = {"process": 1, "processes": 2, "host": "b"}
    answer = {"start": "a", "alive": True, "stop": "out of memory", "left": True}
    return [
        Target("state", _save, partial(_spoil, sealed=False), _restore, 3),
        Target("state that its list calls whole", _save, partial(_spoil, sealed=True), _restore, 3),
        Target("caller", partial(_say, hello), _spoil_words, _admit, 3),
        Target("lifeline", partial(_say, answer), _spoil_words, _listen, 2),
    ]


@lru_cache
def _state(seed: int) -> State:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes(SMALL))
    return start(params, Optimizer().build(), seed=seed)


def _save(folder: Path) -> None:
    record = {"position": loader().state(), "arch": to_json(SMALL)}
    with Checkpoints(folder / "checkpoints") as saves:
        for number in (1, 2):
            saves.save(number, _state(number), record)


def _spoil(folder: Path, draw: Draw, *, sealed: bool) -> int:
    """Flip, cut, empty, remove or exchange files of the newest state; the older one stays, or goes."""
    newest = folder / "checkpoints/2"
    paths = [path for path in sorted(newest.rglob("*")) if path.is_file() and (not sealed or path.name != seal.NAME)]
    for _ in range(draw.choice((1, 1, 3))):
        path = draw.choice(paths)
        content = path.read_bytes() if path.is_file() else b""
        match draw.randrange(8):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                path.write_bytes(b"")
            case 2:
                path.write_bytes(content[: draw.randrange(len(content) + 1)])
            case 3:
                path.write_bytes(draw.choice(paths).read_bytes() if (paths[0]).is_file() else b"x")
            case 4 | 5 if content[:1] == b"{":
                path.write_bytes(_json(content, draw))
            case _:
                path.write_bytes(mutate.damaged(content, draw))
    if draw.randrange(6) == 0:
        shutil.rmtree(folder / "checkpoints/1")
    if sealed:
        seal.seal(newest, parts=PARTS)
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _json(content: bytes, draw: Draw) -> bytes:
    try:
        return as_json(content, draw)
    except ValueError:
        return mutate.damaged(content, draw)


def _restore(folder: Path) -> object:
    with Checkpoints(folder / "checkpoints") as saves:
        found = saves.newest()
        if found is None:
            return None
        state = saves.restore(found[0], _state(0))
        assert jax.tree.structure(state) == jax.tree.structure(_state(0))
    record = found[1]
    feed = loader()
    feed.restore(record.get("position", {}))  # as a run does that goes on
    return next(feed).index, from_json(record.get("arch", {}))


def _say(words: dict[str, object], folder: Path) -> None:
    (folder / "words").write_text(json.dumps(words) + "\n")


def _spoil_words(folder: Path, draw: Draw) -> int:
    path = folder / "words"
    content = path.read_bytes()
    lines = [draw.choice((as_json, as_text))(content, draw) for _ in range(draw.choice((1, 1, 3)))]
    path.write_bytes(draw.choice((b"\n", b"", b"\n\n")).join(lines)[:60_000] + b"\n" * draw.randrange(2))
    return path.stat().st_size


def _sent(folder: Path) -> socket.socket:
    """Return a connection on which the words have come and nothing will follow."""
    here, there = socket.socketpair()
    with there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        there.sendall((folder / "words").read_bytes())
    return here


def _admit(folder: Path) -> object:
    links: dict[int, lifeline.Link] = {}
    rollcall._admit(rollcall.Place("127.0.0.1:1", 2, 0), links, _sent(folder))
    for link in links.values():
        link.socket.close()
    return list(map(str, links.values()))


def _listen(folder: Path) -> object:
    with _sent(folder) as connection:
        link, heard = lifeline.Link(connection, 1, "b"), []
        while (found := link.read()) is not None:
            heard += found
        return heard
