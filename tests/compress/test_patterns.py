"""N of every M inputs, and square blocks: each group and each column keeps its strongest."""

from dataclasses import replace

import numpy as np
import pytest

from compress.address import Matrix, get
from compress.errors import InputError
from compress.sparse import block_masks, entry_masks, n_of_m_masks
from jaxssl.models.sites import matrices
from tests.archs import ARCHS
from tests.compress.masks import assert_grows, lively, lone

every_arch = pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
MAP = Matrix("map", 1, (8, 12))


# N of every M inputs


def sides(matrix):
    """Paths of a map's weights and their shapes as matrices."""
    if matrix.rank is None:
        return {f"{matrix.path}/kernel": (matrix.fan_in, matrix.fan_out)}
    return {f"{matrix.path}/down": (matrix.fan_in, matrix.rank), f"{matrix.path}/up": (matrix.rank, matrix.fan_out)}


@every_arch
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (1, 2), (3, 8)])
def test_n_of_every_m_inputs_stay(arch, keep, of):
    params = lively(arch)
    for matrix in matrices(arch):
        if wrong := [shape[0] for shape in sides(matrix).values() if shape[0] % of]:
            with pytest.raises(InputError, match=rf"{matrix.path}/.*: {of} does not divide its {wrong[0]} inputs"):
                n_of_m_masks(params, [matrix], keep, of)
            continue
        masks = n_of_m_masks(params, [matrix], keep, of)
        assert list(masks) == list(sides(matrix))
        for path, shape in sides(matrix).items():
            weights, stays = np.abs(get(params, path)).reshape(shape), masks[path].reshape(shape)
            assert masks[path].shape == get(params, path).shape
            for column in range(shape[1]):
                for at in range(0, shape[0], of):
                    group, kept = weights[at : at + of, column], stays[at : at + of, column]
                    assert sorted(np.flatnonzero(kept)) == sorted(np.argsort(group, kind="stable")[of - keep :])


def test_consecutive_inputs_of_each_output_by_hand():
    masks = n_of_m_masks(lone([[1, 9], [-4, 8], [3, 7], [2, -6]]), [Matrix("map", 1, (4, 2))], 2, 4)
    assert masks["map/kernel"].T.tolist() == [[False, True, True, False], [True, True, False, False]]


def test_groups_grow_from_what_was_before():
    params = lone(np.random.default_rng(0).normal(size=(8, 12)))
    three = n_of_m_masks(params, [MAP], 3, 4)
    one = n_of_m_masks(lone(np.random.default_rng(1).normal(size=(8, 12))), [MAP], 1, 4, before=three)
    assert_grows(three, one)
    assert (one["map/kernel"].reshape(2, 4, 12).sum(1) == 1).all()
    with pytest.raises(InputError, match=r"map/kernel: 72 of 96 entries .* asks for 48;"):
        n_of_m_masks(params, [MAP], 2, 4, before=one)
    scattered = entry_masks(params, [("map/kernel",)], 0.4)
    both = n_of_m_masks(params, [MAP], 2, 4, before=scattered)
    assert_grows(scattered, both)
    assert (both["map/kernel"].reshape(2, 4, 12).sum(1) <= 2).all()


@pytest.mark.parametrize(("keep", "of"), [(0, 4), (4, 4), (5, 4), (-1, 4), (1, 1), (1, 0)])
def test_impossible_patterns_are_refused(keep, of):
    with pytest.raises(InputError, match=f"cannot keep {keep} of every {of} inputs"):
        n_of_m_masks(lone(np.ones((8, 12))), [MAP], keep, of)


# Blocks


@every_arch
@pytest.mark.parametrize(("sparsity", "size"), [(0.5, 4), (0.75, 2), (0.9, 4), (0.99, 8), (0.25, 1)])
def test_every_column_keeps_its_strongest_blocks(arch, sparsity, size):
    params = lively(arch)
    for matrix in matrices(arch):
        if any(n % size for shape in sides(matrix).values() for n in shape):
            with pytest.raises(InputError, match=rf"{matrix.path}/.*: {size} does not divide"):
                block_masks(params, [matrix], sparsity, size)
            continue
        masks = block_masks(params, [matrix], sparsity, size)
        assert list(masks) == list(sides(matrix))
        for path, (ins, outs) in sides(matrix).items():
            cut = (ins // size, size, outs // size, size)
            stays, weights = masks[path].reshape(cut), np.asarray(get(params, path), np.float64).reshape(cut)
            assert (stays == stays[:, :1, :, :1]).all()
            blocks, power = stays[:, 0, :, 0], np.square(weights).sum((1, 3))
            kept = min(max(1, round((1 - sparsity) * cut[0])), cut[0])
            assert (blocks.sum(0) == kept).all()
            for column in range(cut[2]):
                weakest = np.min(power[blocks[:, column], column], initial=np.inf)
                assert (power[~blocks[:, column], column] <= weakest).all()


def test_blocks_by_hand():
    """The block of greatest L2 norm stays: not the one of greatest L1."""
    kernel = np.array([[1.1, 1.1], [1.1, 1.1], [0, 4], [0, 0]])
    masks = block_masks(lone(kernel), [Matrix("map", 1, (4, 2))], 0.5, 2)
    assert masks["map/kernel"].tolist() == [[False] * 2] * 2 + [[True] * 2] * 2


def test_blocks_grow_from_what_was_before():
    rng = np.random.default_rng(0)
    matrix = Matrix("map", 1, (16, 8))
    params = lone(rng.normal(size=(16, 8)))
    half = block_masks(params, [matrix], 0.5, 2)
    more = block_masks(lone(rng.normal(size=(16, 8))), [matrix], 0.75, 2, before=half)
    assert_grows(half, more)
    assert (more["map/kernel"].reshape(8, 2, 4, 2)[:, 0, :, 0].sum(0) == 2).all()
    with pytest.raises(InputError, match=r"map/kernel: 96 of 128 entries .* asks for 64;"):
        block_masks(params, [matrix], 0.5, 2, before=more)


def test_a_block_counts_by_what_is_left_of_it():
    """Entries that are gone add nothing to its norm, and a block that is gone goes before one of zeros."""
    matrix, ones = Matrix("map", 1, (8, 2)), np.ones((2, 2), bool)
    before = {"map/kernel": np.concatenate([ones ^ ones, ones, ones, ones])}
    before["map/kernel"][1, 1] = True
    params = lone([[9, 9], [9, 1], [2, 2], [2, 2], [1.5, 0], [0, 0], [5, 5], [5, 5]])  # the first is down to its 1
    masks = block_masks(params, [matrix], 0.25, 2, before=before)
    assert masks["map/kernel"][:, 0].tolist() == [False, False, True, True, True, True, True, True]
    before = {"map/kernel": np.concatenate([ones, ones, ones, ones ^ ones])}
    params = lone([[9, 9], [9, 1], [2, 2], [2, 2], [0, 0], [0, 0], [5, 5], [5, 5]])
    masks = block_masks(params, [matrix], 0.25, 2, before=before)
    np.testing.assert_array_equal(masks["map/kernel"], before["map/kernel"])


@pytest.mark.parametrize("size", [0, -4])
def test_blocks_have_a_size(size):
    with pytest.raises(InputError, match=f"blocks of {size} × {size} are none"):
        block_masks(lone(np.ones((8, 12))), [MAP], 0.5, size)


def test_maps_of_another_model_are_refused():
    with pytest.raises(InputError, match=r"map/kernel: shape \(8, 12\) is no matrix \(8, 16\)"):
        block_masks(lone(np.ones((8, 12))), [replace(MAP, shape=(8, 16))], 0.5, 4)
    with pytest.raises(InputError, match="map/down: no such path"):
        n_of_m_masks(lone(np.ones((8, 12))), [replace(MAP, rank=4)], 2, 4)
