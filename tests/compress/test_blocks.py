"""Laws of packed maps: nothing is lost, every column keeps as many blocks, and the rest of compress reads them."""

from dataclasses import replace

import numpy as np
import pytest

from compress.address import Matrix, put
from compress.blocks import kept_blocks, occupancy, pack, unpack
from compress.errors import InputError
from compress.lowrank import decompose, dense_kernel, factorise
from compress.sparse import apply_masks, block_masks

FC = Matrix("fc", 1, (24, 36))
Q = Matrix("q", 1, (24, 3, 4))
OUT = Matrix("out", 2, (3, 4, 24))


def toy(matrix, size, share, seed=0):
    """A tree with one map, of whose blocks about the share `share` is not empty."""
    rng = np.random.default_rng(seed)
    stays = rng.random((matrix.fan_in // size, matrix.fan_out // size)) < share
    kernel = rng.normal(size=(matrix.fan_in, matrix.fan_out)) * np.kron(stays, np.ones((size, size)))
    leaves = {"kernel": kernel.reshape(matrix.shape).astype(np.float32), "bias": np.ones(matrix.fan_out)}
    return {matrix.path: leaves, "other": np.ones(2)}, stays


def bits(array):
    return np.asarray(array).view(np.uint32)


def seen(params, matrix):
    """The matrix as it is in a packed tree."""
    _, kept, size, _ = params[matrix.path]["blocks"].shape
    return replace(matrix, blocks=(size, kept))


@pytest.mark.parametrize("matrix", [FC, Q, OUT], ids=lambda m: m.path)
@pytest.mark.parametrize("size", [1, 2, 4, 12])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_unpack_inverts_pack(matrix, size, share):
    params, _ = toy(matrix, size, share, seed=size)
    params[matrix.path]["kernel"] += 0.0  # no zero is negative, so every bit can be compared
    packed = pack(params, matrix, size)
    back = unpack(packed, seen(packed, matrix))
    assert back[matrix.path].keys() == {"kernel", "bias"}
    assert back[matrix.path]["kernel"].shape == matrix.shape
    assert back[matrix.path]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(bits(back[matrix.path]["kernel"]), bits(params[matrix.path]["kernel"]))
    assert packed[matrix.path]["bias"] is params[matrix.path]["bias"]
    assert back["other"] is params["other"]


def test_what_is_kept_is_kept_bit_for_bit():
    """Also what is not a number, and a zero that is negative; in an empty block the sign of zero is not kept."""
    params, _ = toy(FC, 12, 0.0)
    params["fc"]["kernel"][:2, :2] = [[np.nan, -0.0], [np.inf, 1e-40]]
    params["fc"]["kernel"][12:, :] = -0.0
    packed = pack(params, FC, 12)
    assert seen(packed, FC).blocks == (12, 1)
    back = np.asarray(unpack(packed, seen(packed, FC))["fc"]["kernel"])
    np.testing.assert_array_equal(bits(back[:12]), bits(params["fc"]["kernel"][:12]))
    assert not back[12:].any()


@pytest.mark.parametrize("seed", range(6))
def test_every_column_keeps_as_many_blocks_and_all_that_are_not_empty(seed):
    params, stays = toy(FC, 4, 0.3, seed)
    packed = pack(params, FC, 4)["fc"]
    index, blocks = np.asarray(packed["index"]), np.asarray(packed["blocks"])
    kept = max(stays.sum(0).max(), 1)
    assert kept_blocks(params, FC, 4) == kept
    assert index.shape == (9, kept)
    assert blocks.shape == (9, kept, 4, 4)
    assert index.dtype == np.int32
    assert (np.diff(index) > 0).all()
    view = params["fc"]["kernel"].reshape(6, 4, 9, 4)
    for column in range(9):
        assert set(np.flatnonzero(stays[:, column])) <= set(index[column])
        for row, block in zip(index[column], blocks[column], strict=True):
            np.testing.assert_array_equal(block, view[row, :, column])


def test_an_empty_map_still_keeps_one_block_a_column():
    packed = pack(toy(FC, 4, 0.0)[0], FC, 4)["fc"]
    assert packed["blocks"].shape == (9, 1, 4, 4)
    assert not packed["blocks"].any()


def test_occupancy_is_the_share_of_the_weights_that_is_stored():
    for share in (0.0, 0.3, 1.0):
        params, _ = toy(FC, 4, share)
        packed = pack(params, FC, 4)
        assert occupancy(params, FC, 4) * FC.size == packed["fc"]["blocks"].size == seen(packed, FC).size


def test_block_pruning_packs_to_what_it_keeps():
    """The masks of `compress.sparse.block_masks` keep the same number in every column, so nothing is filled up."""
    params, _ = toy(FC, 4, 1.0)
    pruned = apply_masks(params, block_masks(params, (FC,), 0.5, 4))
    assert occupancy(pruned, FC, 4) == 0.5
    packed = pack(pruned, FC, 4)["fc"]["blocks"]
    assert np.asarray(packed).any((2, 3)).all()


def test_low_rank_reads_a_packed_map():
    params, _ = toy(OUT, 4, 0.5)
    packed = pack(params, OUT, 4)
    matrix = seen(packed, OUT)
    np.testing.assert_array_equal(dense_kernel(packed, matrix), dense_kernel(params, OUT))
    found = decompose(packed, matrix)
    np.testing.assert_allclose(found.spectrum, decompose(params, OUT).spectrum)
    assert factorise(packed, found, 2)["out"].keys() == {"down", "up", "bias"}


@pytest.mark.parametrize(
    ("matrix", "size", "message"),
    [
        (FC, 5, "fc: blocks of 5 do not divide 24 × 36"),
        (FC, 8, "fc: blocks of 8 do not divide 24 × 36"),
        (FC, 0, "fc: blocks of 0 do not divide 24 × 36"),
        (replace(FC, rank=3), 4, r"fc: factorised \(rank 3\)"),
        (replace(FC, blocks=(4, 2)), 4, "fc: packed already, in blocks of 4; unpack"),
        (Matrix("fc", 1, (24, 0, 4)), 4, "fc: 24 × 0 is empty"),
        (Matrix("fc", 1, (36, 24)), 4, r"fc/kernel: shape \(24, 36\), expected \(36, 24\)"),
    ],
)
def test_what_cannot_be_packed_is_named(matrix, size, message):
    params, _ = toy(FC, 4, 0.5)
    for act in (pack, kept_blocks, occupancy):
        with pytest.raises(InputError, match=message):
            act(params, matrix, size)


def test_what_cannot_be_unpacked_is_named():
    params, _ = toy(FC, 4, 0.5)
    packed = pack(params, FC, 4)
    matrix = seen(packed, FC)
    with pytest.raises(InputError, match="fc: not packed"):
        unpack(params, FC)
    with pytest.raises(InputError, match="fc/blocks: no such path"):
        unpack(params, matrix)
    with pytest.raises(InputError, match=r"fc/blocks: shape .*, expected \(18, "):
        unpack(packed, replace(matrix, blocks=(2, matrix.blocks[1])))
    for wrong in (-1, 6):
        index = np.array(packed["fc"]["index"])
        index[0, 0 if wrong < 0 else -1] = wrong
        with pytest.raises(InputError, match="fc/index: not ascending numbers of 0 … 5"):
            unpack(put(packed, "fc/index", index), matrix)
    with pytest.raises(InputError, match="fc/index: not ascending"):
        unpack(put(packed, "fc/index", np.zeros_like(index)), matrix)
