"""Paths, globs and the errors that help."""

import numpy as np
import pytest

from compress.address import Matrix, flatten, get, match, put, unflatten
from compress.errors import InputError

TREE = {"layers": {"0": {"fc1": {"kernel": 1, "bias": 2}}, "1": {"fc1": {"kernel": 3, "bias": 4}}}, "norm": 5}


def test_unflatten_inverts_flatten():
    assert unflatten(flatten(TREE)) == TREE


def test_put_then_get_and_the_rest_untouched():
    changed = put(TREE, "layers/1/fc1/bias", 9)
    assert get(changed, "layers/1/fc1/bias") == 9
    assert get(TREE, "layers/1/fc1/bias") == 4
    assert put(changed, "layers/1/fc1/bias", 4) == TREE
    assert changed["layers"]["0"] is TREE["layers"]["0"]


def test_nothing_can_be_put_below_an_array():
    with pytest.raises(InputError, match="norm/scale: 'norm' is an array"):
        put(TREE, "norm/scale", 1)


def test_a_wrong_path_shows_near_names():
    with pytest.raises(InputError, match=r"layers/1/fc2/bias.*layers/1/fc1/bias"):
        get(TREE, "layers/1/fc2/bias")


def test_a_glob_that_matches_nothing_shows_near_names():
    names = ["layers/0/ffn/fc1", "layers/0/attention/q", "project"]
    assert match("layers/*", names) == tuple(names[:2])
    assert match("*", names) == tuple(names)
    with pytest.raises(InputError, match=r"layer/\*/ffn.*layers/0/ffn/fc1"):
        match("layer/*/ffn", names)
    with pytest.raises(InputError, match="prject"):
        match("layers/*,prject", names)


def test_matrix_arithmetic():
    out = Matrix("out", 2, (12, 64, 768))
    assert (out.fan_in, out.fan_out, out.max_rank, out.size) == (768, 768, 768, 768 * 768)
    assert out.factorised_size(128) == 128 * 1536
    assert out.pays(383)
    assert not out.pays(384)
    assert Matrix("out", 2, (12, 64, 768), rank=8).size == 8 * 1536
    assert np.prod(out.shape) == out.size
    assert [Matrix("out", 2, (12, 64, 768), rank=8).pays(rank) for rank in (7, 8, 9)] == [True, False, False]
