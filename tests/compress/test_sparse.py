"""Masks drop what they say, nest, and are the study's own."""

import re
from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, get, put
from compress.errors import InputError
from compress.sparse import (
    apply_masks,
    block_masks,
    check_sparsity,
    entry_masks,
    n_of_m_masks,
    zero_masks,
)
from jaxssl.convert.conversion import read
from jaxssl.models.arch import melhubert
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import entries, matrices
from tests.archs import ARCHS, MEL, UNEVEN
from tests.compress.masks import assert_grows, dropped, lively, whole
from tests.golden import meets

every_arch = pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)


def by_sorting(params, group, sparsity):
    """The rule in two lines: stable sort by |w|, the first round(s · N) go."""
    flat = np.concatenate([np.abs(get(params, path)).reshape(-1) for path in group])
    stays = np.ones(flat.size, bool)
    stays[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = False
    sizes = np.cumsum([get(params, path).size for path in group])[:-1]
    return {p: m.reshape(get(params, p).shape) for p, m in zip(group, np.split(stays, sizes), strict=True)}


def assert_same(one, two):
    assert list(one) == list(two)
    for path, mask in one.items():
        np.testing.assert_array_equal(mask, two[path], err_msg=path)


# The study's own masks


@pytest.fixture(scope="module")
def study(shared):
    """The base model, and masks at each sparsity, each continued from the one before."""
    base, masks = read(shared / "melhubert/ckpt/tiny20.ckpt"), {}
    before = None
    for sparsity in (0.2, 0.5, 0.9):
        before = masks[sparsity] = entry_masks(base.params, whole(base.arch), sparsity, before=before)
    return base, masks


def of_the_study(arch, arrays):
    """Turn `<PyTorch name>_mask` entries into masks by our paths."""
    wanted = flatten(shapes(arch))
    for name in arrays.files:
        rule = next(rule for rule in arch.names("fairseq") if re.fullmatch(rule.pattern, name.removesuffix("_mask")))
        path = re.sub(rule.pattern, rule.path, name.removesuffix("_mask"))
        yield path, rule.layout.convert(arrays[name].astype(bool), wanted[path].shape)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_masks_are_the_studys(shared, study, sparsity):
    """Entry for entry; no two magnitudes are equal at these thresholds, where PyTorch's order would be its own."""
    base, ours = study[0], study[1][sparsity]
    theirs = dict(of_the_study(base.arch, np.load(shared / f"melhubert/weight/pure/masks-{sparsity}.npz")))
    assert dropped(ours) == round(sparsity * 99648)
    assert_same(ours, {path: theirs.pop(path) for path in ours})
    assert not theirs


def test_the_pruned_model_gives_the_studys_features(shared, study):
    base, masks = study
    inputs = np.load(shared / "melhubert/forward/tiny20_libri960.npz")
    golden = np.load(shared / "melhubert/weight/pure/features-0.5.npz")
    pruned = apply_masks(base.params, masks[0.5])
    run = jax.jit(lambda params, *inputs: apply(base.arch, params, *inputs).last)
    last = run(pruned, inputs["mel_input"], inputs["mel_len"].astype(np.int32))
    meets({"last": last}, golden, atol=1e-4, lengths=golden["mel_len"])
    assert sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(pruned)) == int(golden["nonzero_params"])


# Entries


def test_what_is_pruned_in_the_full_size_model():
    """METHODS: 85,017,600 entries of MelHuBERT 20 ms."""
    arch = melhubert()
    sizes = {path: prod(leaf.shape) for path, leaf in flatten(shapes(arch)).items()}
    assert sum(sizes[path] for path in whole(arch)[0]) == 85_017_600
    assert sum(sizes[path] for group in entries(arch, biases=False) for path in group) == 84_934_656
    assert len(entries(arch)) == 12


@every_arch
def test_entries_are_all_dense_maps_of_the_layers(arch):
    groups, paths = entries(arch), flatten(shapes(arch))
    diagonal = ("layers/0/mixing/local", "layers/0/mixing/summary")  # of several heads
    apart = ("norm", "adapter", "gate", "conv/", "scan/", "shortening", *diagonal)
    wanted = [path for path in paths if path.startswith("layers/") and not any(each in path for each in apart)]
    assert sorted(whole(arch)[0]) == sorted(wanted)
    assert all(path.startswith(f"layers/{i}/") for i, group in enumerate(groups) for path in group)
    weights = [path for group in entries(arch, biases=False) for path in group]
    assert sorted(weights) == sorted(path for path in wanted if not path.endswith("/bias"))


@every_arch
@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.5, 0.925, 0.9999])
def test_exactly_the_smallest_go(arch, sparsity):
    """Over the model or in each layer, ties in the order of the paths; zeros and few distinct values included."""
    for step in (1e-6, 0.01, 1.0):
        params = lively(arch, step=step)
        for groups in (whole(arch), entries(arch)):
            masks = entry_masks(params, groups, sparsity)
            for group in groups:
                assert_same({path: masks[path] for path in group}, by_sorting(params, group, sparsity))


@every_arch
def test_masks_nest(arch):
    """On the same weights higher sparsities are subsets of lower ones, whether they continue them or not."""
    params, groups = lively(arch), whole(arch)
    levels = (0.2, 0.5, 0.55, 0.9, 0.95)
    alone = [entry_masks(params, groups, level) for level in levels]
    before, chain = None, []
    for level in levels:
        before = entry_masks(params, groups, level, before=before)
        chain.append(before)
    for one, two in pairwise(alone):
        assert_grows(one, two)
    for one, two in zip(alone, chain, strict=True):
        assert_same(one, two)


@every_arch
def test_masks_only_grow_while_weights_change(arch):
    """What is gone stays gone, however large it has become, and counts; masks of before may be jax arrays."""
    groups = entries(arch)
    before = entry_masks(lively(arch, 0), groups, 0.4)
    params = lively(arch, 1)
    after = entry_masks(params, groups, 0.6, before={path: jnp.asarray(mask) for path, mask in before.items()})
    assert_grows(before, after)
    for group in groups:
        total = sum(after[path].size for path in group)
        assert dropped({path: after[path] for path in group}) == round(0.6 * total)
        fresh = [np.abs(get(params, path))[before[path]] for path in group]
        left = [np.abs(get(params, path))[after[path]] for path in group]
        limit = round(0.6 * total) - round(0.4 * total)
        assert np.sort(np.concatenate(fresh))[limit:].tolist() == np.sort(np.concatenate(left)).tolist()
    again = entry_masks(params, groups, 0.6, before=after)
    assert_same(again, after)


def test_ties_go_in_the_order_of_the_paths():
    params = {name: np.full((2, 2), sign, np.float32) for name, sign in (("a", 1), ("b", -1))}
    masks = entry_masks(params, [("b", "a")], 0.75)
    assert {path: mask.reshape(-1).tolist() for path, mask in masks.items()} == {
        "b": [False] * 4,
        "a": [False, False, True, True],
    }


def test_the_order_in_memory_does_not_matter():
    kernel = np.random.default_rng(0).integers(0, 3, (5, 7)).astype(np.float32)
    usual = entry_masks({"a": kernel}, [("a",)], 0.5)
    assert_same(entry_masks({"a": np.asfortranarray(kernel)}, [("a",)], 0.5), usual)


def test_infinite_weights_stay_longest():
    masks = entry_masks({"a": np.array([np.inf, -1e38, 1e-45, -np.inf], np.float32)}, [("a",)], 0.5)
    assert masks["a"].tolist() == [True, False, False, True]


@pytest.mark.parametrize("sparsity", [1.0, 37, float("nan"), 0, 0.0, -0.1, float("inf")])
def test_sparsities_are_shares(sparsity):
    params = lively(MEL)
    with pytest.raises(InputError, match=f"sparsity {re.escape(str(sparsity))} is no share"):
        check_sparsity(sparsity)
    with pytest.raises(InputError, match=f"sparsity {re.escape(str(sparsity))} is no share"):
        entry_masks(params, entries(MEL), sparsity)
    with pytest.raises(InputError, match=f"sparsity {re.escape(str(sparsity))} is no share"):
        block_masks(params, matrices(MEL)[1:], sparsity, 4)


def test_percent_are_told_as_shares():
    with pytest.raises(InputError, match="37 % is 0.37"):
        check_sparsity(37)


def test_entries_that_cannot_be_dropped_are_refused():
    params, path = lively(MEL), "layers/1/ffn/fc1/kernel"
    broken = put(params, path, params["layers"]["1"]["ffn"]["fc1"]["kernel"].copy())
    get(broken, path)[3, 4:6] = np.nan
    for act in (
        lambda: entry_masks(broken, entries(MEL), 0.5),
        lambda: n_of_m_masks(broken, matrices(MEL)[1:], 2, 4),
        lambda: block_masks(broken, matrices(MEL)[1:], 0.5, 4),
    ):
        with pytest.raises(InputError, match=f"{path}: 2 of 384 weights are not numbers"):
            act()
    full = entry_masks(params, whole(MEL), 0.5)
    total = sum(mask.size for mask in full.values())
    with pytest.raises(InputError, match=rf"{round(0.5 * total)} of {total} entries .* asks for {round(0.4 * total)};"):
        entry_masks(params, whole(MEL), 0.4, before=full)
    with pytest.raises(InputError, match="layers/9/x: no such path"):
        entry_masks(params, [("layers/9/x",)], 0.5)
    with pytest.raises(InputError, match="layers/0/ffn: a branch"):
        entry_masks(params, [("layers/0/ffn",)], 0.5)
    with pytest.raises(InputError, match=f"{path}: named twice"):
        entry_masks(params, [(path,), (path,)], 0.5)
    for mask in (np.ones((16, 23), bool), np.ones((16, 24), np.int32)):
        with pytest.raises(InputError, match=rf"{path}: the mask is {mask.dtype}.*\(16, 24\)"):
            entry_masks(params, [(path,)], 0.5, before={path: mask})


# Masks at work


@every_arch
def test_masks_multiply(arch):
    """apply_masks(p, m) == p · m, in place of nothing: what has no mask is the same array, and p stays as it was."""
    params = lively(arch)
    masks = entry_masks(params, whole(arch), 0.6)
    seen, flat = flatten(apply_masks(params, masks)), flatten(params)
    assert list(seen) == list(flat)
    for path, leaf in flat.items():
        np.testing.assert_array_equal(seen[path], leaf * masks[path] if path in masks else leaf, err_msg=path)
    assert apply_masks(params, {}) == params
    assert seen["norm/scale"] is flat["norm/scale"]
    assert sum(int((np.asarray(seen[path]) == 0).sum()) for path in masks) >= dropped(masks)


def test_what_is_dropped_gives_nothing_and_gets_no_gradient():
    """With masks that are traced, as a training step holds them."""
    params, masks = {"a": jnp.array([jnp.nan, 2.0, 3.0])}, {"a": np.array([False, True, True])}
    loss = jax.jit(jax.value_and_grad(lambda params, masks: (apply_masks(params, masks)["a"] ** 2).sum()))
    value, gradient = loss(params, masks)
    assert float(value) == 13
    assert gradient["a"].tolist() == [0, 4, 6]


@every_arch
def test_zeros_stay_zero(arch):
    """Masks read off a pruned model are those that made it; a map without zeros has none."""
    params = lively(arch)
    params = jax.tree.map(lambda leaf: np.where(leaf == 0, np.float32(0.5), leaf), params)
    assert zero_masks(params, matrices(arch)) == {}
    groups = [path for path in whole(arch)[0] if path.startswith("layers/0/")]
    masks = entry_masks(params, [groups], 0.5)
    found = zero_masks(apply_masks(params, masks), matrices(arch))
    assert found.keys() <= masks.keys()
    assert dropped(found) == dropped(masks)
    for path, mask in found.items():
        np.testing.assert_array_equal(mask, masks[path], err_msg=path)


def test_a_zero_bias_alone_is_not_pruned():
    """As every bias of a fresh model."""
    params = lively(MEL, step=1e-6)
    fresh = put(params, "layers/0/ffn/fc1/bias", np.zeros(24, np.float32))
    assert zero_masks(fresh, matrices(MEL)) == {}
    pruned = put(fresh, "layers/0/ffn/fc1/kernel", np.eye(16, 24, dtype=np.float32))
    masks = zero_masks(pruned, matrices(MEL))
    assert list(masks) == ["layers/0/ffn/fc1/kernel", "layers/0/ffn/fc1/bias"]
    assert not masks["layers/0/ffn/fc1/bias"].any()


def test_a_zero_on_either_side_marks_the_whole_map():
    params = lively(UNEVEN, step=1e-6)
    up = put(params, "layers/0/attention/q/up", np.zeros_like(get(params, "layers/0/attention/q/up")))
    masks = zero_masks(up, matrices(UNEVEN))
    assert list(masks) == [f"layers/0/attention/q/{name}" for name in ("down", "up", "bias")]
    assert masks["layers/0/attention/q/down"].all()
    assert not masks["layers/0/attention/q/up"].any()


def test_masks_of_another_model_are_refused():
    params = lively(MEL)
    with pytest.raises(InputError, match="layers/0/ffn/fc3: no such path"):
        apply_masks(params, {"layers/0/ffn/fc3": np.ones(3, bool)})
    for mask in (np.ones((24, 16), bool), np.ones(24, bool), np.ones((16, 24), np.float32), True):
        with pytest.raises(InputError, match=r"layers/0/ffn/fc1/kernel: the mask is .* the tensor \(16, 24\)"):
            apply_masks(params, {"layers/0/ffn/fc1/kernel": mask})
