"""Pickles that would fill memory, overflow the stack or never end are refused before any opcode runs."""

import pickle
import tracemalloc

import pytest

from compress.errors import InputError
from jaxssl.convert.pickle_reader import load
from tests.convert.pickles import Storage, program, save_zip, tensor


def text(length):
    return b"X" + length.to_bytes(4, "little") + b"a" * length


def doubled(times):
    """A tuple of itself twice, so many times, from an empty one."""
    return b")" + b"2\x86" * times


EMPTY_LISTS = b"".join(b"]r" + i.to_bytes(4, "little") for i in range(60))
LINKED = b"".join(
    b"j" + i.to_bytes(4, "little") + (b"j" + (i + 1).to_bytes(4, "little") + b"a") * 2 + b"0" for i in range(59)
)
BOMBS = {
    "a table of half a billion": b"Nr" + (2**29).to_bytes(4, "little"),
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "a tuple of itself twice as a key": b"}" + doubled(60) + b"Ns",
    "a tuple of itself twice, dropped": doubled(60) + b"0N",
    "lists that grow once others hold them": EMPTY_LISTS + LINKED + b"j" + (0).to_bytes(4, "little"),
    "one text encoded 20,000 times": text(10**6) + b"q\x000" + b"c_codecs\nencode\nh\x00\x85R0" * 20_000 + b"N",
    "one tuple measured again and again": b"("
    + b"N" * 10**4
    + b"tq\x000"
    + b"ctorch\nSize\nh\x00\x85R0" * 10**4
    + b"N",
    "a number of a million digits": b"\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6,
    "more text than there is": b"\x8d" + (2**40).to_bytes(8, "little"),
    "more values than it made": b"\x85",
    "a value that it has not kept": b"h\x07",
    "a mark for a value": b"(\x85",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_run(tmp_path, bomb, zipped):
    """What would fill memory, overflow the stack or never end costs as much as reading it."""
    path, whole = tmp_path / "x.pt", b"\x80\x04" + bomb + b"."
    if zipped:
        save_zip(path, whole)
    else:
        path.write_bytes(whole)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"damaged, cut short or no PyTorch file \(.+\); copy it again"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(whole) + 2**28
    tracemalloc.stop()


def test_what_holds_itself_is_read(tmp_path):
    """As omegaconf's nodes, which know their parents."""
    node = {"name": "root"}
    node["child"] = {"parent": node}
    read = load(save_zip(tmp_path / "x.pt", pickle.dumps(node, 2)))
    assert read["child"]["parent"] is read


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    storage = Storage("0", 20_000)
    shared = {f"layer{i}": tensor(storage, 0, (20_000,), (1,)) for i in range(20)}
    path = save_zip(tmp_path / "x.pt", program(shared), {"0": bytes(80_000)})
    with pytest.raises(InputError, match="show the 20000 numbers of storage 0 over 16 times"):
        load(path)
    few = dict(list(shared.items())[:16])
    assert len(load(save_zip(tmp_path / "y.pt", program(few), {"0": bytes(80_000)}))) == 16
