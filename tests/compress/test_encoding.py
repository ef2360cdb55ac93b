"""Encoded trees come back bit for bit, in no more bytes than any of the forms, and damage is told."""

import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, unflatten
from compress.encoding import EXPANSION, decode, encode, encoded_bytes, smallest
from compress.errors import InputError
from compress.quantize import bfloat16
from compress.sparse import apply_masks, entry_masks
from jaxssl.inference.specialise import quantized
from jaxssl.models.model import shapes
from jaxssl.models.sites import entries, matrices
from tests.archs import ARCHS, MEL

PREFIX = struct.Struct("<8sII")
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1.0, 0.0], np.float32)
ODD[2:3].view(np.uint32)[:] = 0x7FC0BEEF  # a NaN that carries a message


def assert_same(one, two):
    one, two = flatten(one), flatten(two)
    assert list(one) == list(two)
    for path, leaf in two.items():
        assert (one[path].shape, one[path].dtype) == (leaf.shape, leaf.dtype), path
        bits = f"u{leaf.dtype.itemsize}"
        np.testing.assert_array_equal(one[path].view(bits), np.asarray(leaf).view(bits), err_msg=path)


def sparse(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < density, rng.normal(size=shape), 0).astype(np.float32)


def header_of(data):
    length = PREFIX.unpack_from(data)[2]
    return json.loads(data[PREFIX.size : PREFIX.size + length]), data[PREFIX.size + length :]


def forged(header, data=b""):
    """Bytes that are whole, whatever they say."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(b"sparse-1", zlib.crc32(header + data, len(header)), len(header)) + header + data


def entry(**changes):
    return {"path": "a", "shape": [4], "dtype": "float32", "form": "dense", "nonzero": 4, "rows": 1} | changes


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
def test_models_come_back(arch, sparsity):
    params = unflatten({path: sparse(leaf.shape, 0.99) for path, leaf in flatten(shapes(arch)).items()})
    tree = apply_masks(params, entry_masks(params, entries(arch), sparsity))
    encoded = encode(tree)
    assert encoded_bytes(tree) == len(encoded)
    assert_same(decode(encoded), tree)


@pytest.mark.parametrize("arch", [MEL, ARCHS["uneven"]], ids=["mel", "uneven"])
def test_rounded_models_come_back_in_a_half_and_a_quarter_of_the_bytes(arch):
    """Of the maps' weights; pruned ones are left out as they are of float32."""
    params = unflatten({path: sparse(leaf.shape, 1) for path, leaf in flatten(shapes(arch)).items()})
    whole = len(encode(params))
    for tree, share in ((bfloat16(params), 0.5), (quantized(arch, params)[1], 0.25)):
        assert_same(decode(encode(tree)), tree)
        names = [f"{m.path}/{name}" for m in matrices(arch)[1:] for name in ("kernel", "down", "up")]
        maps = {path: leaf for path, leaf in flatten(tree).items() if path in names}
        stored = sum(smallest(path, np.asarray(leaf)).bytes for path, leaf in maps.items())
        assert stored == share * sum(4 * leaf.size for leaf in maps.values())
        pruned = apply_masks(params, entry_masks(params, entries(arch), 0.9))
        small = bfloat16(pruned) if share == 0.5 else quantized(arch, pruned)[1]
        assert_same(decode(encode(small)), small)
        assert len(encode(small)) < len(encode(tree)) < whole


@pytest.mark.parametrize(
    "array",
    [
        ODD,
        ODD.astype(jnp.bfloat16),
        np.zeros((0, 3), jnp.bfloat16),
        sparse((40, 300), 0.02).astype(jnp.bfloat16)[::2, ::3],
        np.array([[0, 1, -128, 127], [0, 0, 0, -1]], np.int8),
        np.zeros((3, 0), np.int8),
        np.where(sparse((2, 70_000), 0.01) != 0, 3, 0).astype(np.int8),
        np.where(np.eye(64, 8, dtype=bool), ODD, np.float32(0)),
        np.zeros((0, 3), np.float32),
        np.zeros((), np.float32),
        np.ones((), np.float32),
        np.zeros((3, 4, 5), np.float32),
        np.asfortranarray(sparse((7, 300), 0.5)),
        sparse((40, 300), 0.02)[::2, ::3],
        sparse((2, 70_000), 0.01),
        sparse((300, 1, 300), 0.001),
        sparse((1, 257), 0.03),
        np.arange(-3, 9, dtype=np.int32).reshape(3, 4),
        np.zeros((5, 5), np.int32),
        sparse((5, 5), 0.5).astype(">f4"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_come_back(array):
    tree = {"a": {"b": array, "c": jnp.ones((2, 3))}, "d": array}
    native = jax.tree.map(lambda leaf: np.asarray(leaf).astype(leaf.dtype.name), tree)
    found = decode(encode(tree))
    assert_same(found, native)
    found["d"][...] = 1  # arrays of its own
    assert decode(encode({})) == {}


def by_hand(array):
    """Bytes of every form, and of every matrix that the shape can be broken into."""

    def width(largest):
        return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4

    count = int(np.count_nonzero(array.view(np.uint32)))
    sizes = {"dense": 4 * array.size, "bits": -(-array.size // 8) + 4 * count}
    rows = np.cumprod([1, *array.shape[:-1]]).tolist()
    sizes["csr"] = min((r + 1) * width(count) + count * (width(max(array.size // r - 1, 0)) + 4) for r in rows)
    return sizes


@pytest.mark.parametrize(
    ("shape", "density", "form"),
    [
        ((300, 400), 1.0, "dense"),
        ((300, 400), 0.98, "dense"),
        ((300, 400), 0.96, "bits"),
        ((300, 400), 0.5, "bits"),
        ((300, 400), 0.1, "bits"),
        ((300, 400), 0.05, "csr"),
        ((400, 256), 0.1, "csr"),
        ((16, 12, 64), 0.01, "csr"),
        ((70_000,), 0.01, "csr"),
        ((64,), 0.0, "csr"),
        ((1,), 1.0, "dense"),
    ],
)
def test_the_smallest_form_is_chosen(shape, density, form):
    array = sparse(shape, density)
    sizes, found = by_hand(array), smallest("a", array)
    assert (found.form, found.bytes) == (form, min(sizes.values()))
    assert sizes[form] == min(sizes.values())
    header, data = header_of(encode({"a": array, "b": np.ones(2000, np.float32)}))
    assert header[0]["form"] == form
    assert len(data) == found.bytes + 8000


def test_indices_stay_dense():
    assert smallest("a", np.zeros(1000, np.int32)).form == "dense"


def test_encodings_are_small_and_honest():
    """A 0.9-sparse matrix: one bit an entry, four bytes for each that stays, and the list of arrays."""
    array = sparse((768, 768), 0.1)
    count, encoded = np.count_nonzero(array), encode({"a": array})
    assert 768 * 768 // 8 + 4 * count < len(encoded) < 768 * 768 // 8 + 4 * count + 150
    assert len(encoded) < 0.14 * array.nbytes


def test_a_tree_of_zeros_is_no_bomb():
    """Written in a form that may be read again: at most EXPANSION times its encoding."""
    tree = {"a": np.zeros((1000, 1000), np.float32)}
    encoded = encode(tree)
    assert EXPANSION * len(encoded) >= tree["a"].nbytes
    assert encoded_bytes(tree) == len(encoded) < 200_000
    assert_same(decode(encoded), tree)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint32, bool, object])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InputError, match=f"a/b: {np.dtype(dtype)} is not encoded; give float32, bfloat16, int8, int32"):
        encode({"a": {"b": np.zeros(3, dtype)}})


@pytest.mark.parametrize("path", ["a\nb", "/".join("a" * 40)])
def test_paths_that_could_not_be_read_again_are_refused(path):
    with pytest.raises(InputError, match="too deep, below another, or not printable"):
        encode({path: np.zeros(3, np.float32)})


def test_every_truncation_is_told():
    encoded = encode({"a": sparse((9, 30), 0.05), "b": sparse((9, 8), 0.5), "c": np.ones(3, np.float32)})
    assert {e["form"] for e in header_of(encoded)[0]} == {"csr", "bits", "dense"}
    for end in range(len(encoded)):
        with pytest.raises(InputError) as caught:
            decode(encoded[:end])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="damaged"):
        decode(encoded + b"\0")


def test_every_flipped_bit_is_told():
    encoded = encode({"a": sparse((5, 40), 0.05), "b": sparse((3, 8), 0.5)})
    for at in range(len(encoded)):
        for bit in (1, 128):
            broken = bytearray(encoded)
            broken[at] ^= bit
            with pytest.raises(InputError):
                decode(bytes(broken))


@pytest.mark.parametrize("data", [b"", b"x", b"sparse-1", b"PK\x03\x04" + bytes(100), b"\x93NUMPY" + bytes(200)])
def test_foreign_bytes_are_told(data):
    with pytest.raises(InputError, match=f"these {len(data)} bytes are"):
        decode(data)


HOSTILE = {
    "no JSON": b"{",
    "no UTF-8": b'["\xff"]',
    "nested": b"[" * 100_000,
    "a long number": b'[{"path": ' + b"9" * 5000 + b"}]",
    "no list": {"path": "a"},
    "a number": 3,
    "a list of numbers": [1, 2],
    "nothing in it": [{}],
    "unknown field": [entry(more=1)],
    "path a number": [entry(path=1)],
    "path a list": [entry(path=["a"])],
    "path not printable": [entry(path="a\nb")],
    "path a surrogate": [entry(path="\ud800")],
    "path too deep": [entry(path="a/" * 100_000)],
    "shape a number": [entry(shape=4)],
    "shape of text": [entry(shape="4")],
    "shape negative": [entry(shape=[-4])],
    "shape twice negative": [entry(shape=[-2, -2])],
    "shape of truth": [entry(shape=[True, 4])],
    "shape of fractions": [entry(shape=[4.0])],
    "shape of no number": [entry(shape=[float("nan")])],
    "too many axes": [entry(shape=[1] * 65 + [4])],
    "an empty shape beyond NumPy": [entry(shape=[0, 1 << 62, 1 << 62], nonzero=0)],
    "a shape of digits": [entry(shape=[10**4000] * 20, nonzero=0)],
    "dtype of objects": [entry(dtype="object")],
    "dtype a list": [entry(dtype=["float32"])],
    "unknown form": [entry(form="zip")],
    "more entries than the shape": [entry(form="bits", nonzero=5)],
    "no rows": [entry(form="csr", rows=0, nonzero=0)],
    "rows that do not divide": [entry(form="csr", rows=3, nonzero=0)],
    "rows without end": [entry(form="csr", shape=[0], rows=10**4000, nonzero=0)],
    "too large": [entry(shape=[1 << 40])],
    "too large in rows": [entry(form="csr", shape=[1 << 40, 1], rows=1 << 40, nonzero=0)],
    "too large in bits": [entry(form="bits", shape=[1 << 40], nonzero=0)],
    "too short": [entry(shape=[1])],
    "twice": [entry(shape=[2], nonzero=2), entry(shape=[2], nonzero=2)],
    "below an array": [entry(shape=[2], nonzero=2), entry(path="a/b", shape=[2], nonzero=2)],
    "above an array": [entry(path="a/b/c", shape=[2], nonzero=2), entry(shape=[2], nonzero=2)],
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_told(header):
    with pytest.raises(InputError) as caught:
        decode(forged(header, bytes(16)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()


def test_the_header_that_the_hostile_ones_are_made_of_is_read():
    np.testing.assert_array_equal(decode(forged([entry()], bytes(16)))["a"], np.zeros(4, np.float32))


def test_a_short_file_cannot_ask_for_all_memory():
    """Two pointers of one byte are a whole CSR matrix of any width, if nobody looks."""
    bomb = forged([entry(form="csr", shape=[1 << 40], nonzero=0)], b"\0\0")
    with pytest.raises(InputError, match=f"more than {EXPANSION} times"):
        decode(bomb)


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"form": "bits", "nonzero": 2}, b"\x80" + bytes(8)),  # one bit, two values
        ({"form": "bits", "nonzero": 0}, b"\x80"),
        (
            {"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 1},
            bytes([0, 1, 0]) + b"\0" + bytes(4),
        ),  # pointers fall
        ({"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 1}, bytes([1, 1, 1]) + b"\0" + bytes(4)),  # not from 0
        ({"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 1}, bytes([0, 0, 0]) + b"\0" + bytes(4)),  # not to all
        ({"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 5}, bytes([0, 2, 5, 0, 1, 0, 1, 1]) + bytes(20)),
        ({"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 1}, bytes([0, 9, 1]) + b"\0" + bytes(4)),
        (
            {"form": "csr", "shape": [2, 2], "rows": 2, "nonzero": 1},
            bytes([0, 0, 1]) + b"\2" + bytes(4),
        ),  # column 2 of 2
    ],
)
def test_places_outside_the_array_are_told(change, data):
    with pytest.raises(InputError, match="a: .*damaged|more entries or rows than the shape has"):
        decode(forged([entry(**change)], data))


def test_pruning_shows_in_bytes():
    """The encoded model shrinks with every event, and is never larger than dense but for its list."""
    params = unflatten({path: sparse(leaf.shape, 1.0) for path, leaf in flatten(shapes(MEL)).items()})
    groups = [[path for group in entries(MEL) for path in group]]
    pruned = [apply_masks(params, entry_masks(params, groups, sparsity)) for sparsity in (0.2, 0.5, 0.9)]
    lengths = [len(encode(tree)) for tree in (params, *pruned)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] <= sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + 150 * len(flatten(params))
