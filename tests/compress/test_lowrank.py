"""Laws of low rank: best approximations, one function dense or factorised, budgets spent well."""

import itertools

import jax
import numpy as np
import pytest

from compress.address import Matrix, get, put
from compress.errors import InputError
from compress.lowrank import (
    Heard,
    decompose,
    decompose_maps,
    dense_kernel,
    factorise,
    factorise_maps,
    fit,
    truncate,
)
from compress.ranks import allocate, rank_for_energy
from jaxssl.models import cost
from jaxssl.models.describe import describe
from jaxssl.models.sites import matrices
from tests.archs import ARCHS, MEL, forward, fresh, noise, weights

every_arch = pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))


def toy(rows, columns, seed=0):
    """A tree with one map, and inputs whose directions differ much in power."""
    rng = np.random.default_rng(seed)
    params = {"map": {"kernel": rng.normal(size=(rows, columns)).astype(np.float32), "bias": np.zeros(columns)}}
    inputs = rng.normal(size=(500, rows)) @ (rng.normal(size=(rows, rows)) * np.logspace(0, -2, rows))
    return params, Matrix("map", 1, (rows, columns)), inputs


def working(arch):
    return [matrix for matrix in matrices(arch) if matrix.max_rank > 1]


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)])
def test_plain_is_the_best_approximation(shape):
    """Eckart & Young: the error is the root of the dropped squared singular values, for every rank."""
    params, matrix, _ = toy(*shape)
    kernel, found = dense_kernel(params, matrix), decompose(params, matrix)
    singular = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(found.spectrum, singular, rtol=1e-6)
    for rank in range(1, matrix.max_rank + 1):
        down, up = found.factors(rank)
        dropped = np.sqrt((singular[rank:] ** 2).sum())
        np.testing.assert_allclose(np.linalg.norm(kernel - down @ up), dropped, atol=1e-5)
        kept = fit(params, found, rank)
        np.testing.assert_allclose(kept.error, dropped / np.linalg.norm(kernel), atol=1e-5)
        np.testing.assert_allclose(kept.energy, 1 - kept.error**2, atol=1e-9)


@every_arch
def test_a_set_of_maps_is_factorised_as_each_alone(arch, key):
    """Where it pays; None and maps that are not named stay as they are."""
    params, maps = fresh(arch), working(arch)
    found = decompose_maps(params, maps)
    ranks = {matrix.path: (None, 2, matrix.max_rank)[i % 3] for i, matrix in enumerate(maps[:-1])}
    expected = params
    for matrix in maps[:-1]:
        rank = ranks[matrix.path]
        if rank is not None and matrix.pays(rank):
            expected = factorise(expected, decompose(params, matrix), rank)
    assert jax.tree.all(jax.tree.map(np.array_equal, factorise_maps(params, found, ranks), expected))
    with pytest.raises(InputError, match="rank 0"):
        factorise_maps(params, found, 0)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)])
def test_activation_aware_is_the_best_on_its_inputs(shape):
    """‖X(W − UV)‖ is least: never above the plain one, and equal to the closed form through QR of the inputs."""
    params, matrix, inputs = toy(*shape)
    moment = inputs.T @ inputs / len(inputs)
    kernel, aware, plain = dense_kernel(params, matrix), decompose(params, matrix, moment), decompose(params, matrix)
    outputs = inputs @ kernel
    best = np.linalg.svd(outputs, compute_uv=False)
    for rank in range(1, matrix.max_rank):
        errors = [np.linalg.norm(outputs - inputs @ np.matmul(*d.factors(rank))) for d in (aware, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-6)
        np.testing.assert_allclose(errors[0], np.sqrt((best[rank:] ** 2).sum()), rtol=1e-2)
        measured = fit(params, aware, rank, moment).speech_error
        np.testing.assert_allclose(measured, errors[0] / np.linalg.norm(outputs), rtol=1e-3)


def test_a_moment_with_negative_eigenvalues_by_rounding_decomposes_as_without():
    """Inputs of one direction and little more: single precision leaves eigenvalues below zero, beyond the damping."""
    params, matrix, _ = toy(12, 16)
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(500, 1)) * np.ones(12) + 1e-9 * rng.normal(size=(500, 12))
    exact = inputs.T @ inputs / 500
    rounded = exact - 1e-5 * np.trace(exact) / 12 * np.outer(sign := np.resize([1, -1], 12), sign) / 12
    assert np.linalg.eigvalsh(rounded)[0] < -5e-6 * np.trace(exact) / 12
    one, two = (decompose(params, matrix, each) for each in (exact, rounded))
    products = [inputs @ each.left[:, :1] @ each.right[:1] for each in (one, two)]
    np.testing.assert_allclose(*products, atol=1e-3)
    assert np.linalg.norm(products[1] - inputs @ dense_kernel(params, matrix)) < 1e-3 * np.linalg.norm(products[1])


@pytest.mark.parametrize("shape", [(12, 8), (9, 9)])
def test_what_a_map_makes_of_speech_is_enough(shape):
    """Its outputs' moment and its inputs' power decompose a map as its inputs' moment does, and measure the same."""
    params, matrix, inputs = toy(*shape)
    moment, outputs = inputs.T @ inputs / 500, inputs @ dense_kernel(params, matrix)
    heard = Heard(outputs.T @ outputs / 500, float(np.square(inputs).mean()))
    one, two = (decompose(params, matrix, each) for each in (moment, heard))
    np.testing.assert_allclose(one.spectrum, two.spectrum, rtol=1e-5)
    for found in (one, decompose(params, matrix)):
        for rank in range(1, matrix.max_rank):
            np.testing.assert_allclose(
                one.left[:, :rank] @ one.right[:rank], two.left[:, :rank] @ two.right[:rank], atol=1e-5
            )
            errors = [fit(params, found, rank, each).speech_error for each in (moment, heard)]
            np.testing.assert_allclose(*errors, rtol=1e-4)
    with pytest.raises(InputError, match="map: the outputs' moment is"):
        decompose(params, matrix, Heard(np.eye(7), 1.0))
    wider, where, _ = toy(8, 12)
    with pytest.raises(InputError, match="map: 8 × 12 needs the moment of its inputs"):
        decompose(wider, where, Heard(np.eye(12), 1.0))


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("aware", [False, True])
def test_full_rank_is_the_map_itself(shape, aware):
    params, matrix, inputs = toy(*shape)
    inputs[:, :3] = 0  # a moment without full rank: directions never seen must survive too
    down, up = decompose(params, matrix, inputs.T @ inputs if aware else None).factors(matrix.max_rank)
    np.testing.assert_allclose(down @ up, params["map"]["kernel"], atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("aware", [False, True])
def test_the_two_sides_weigh_the_same(shape, aware):
    params, matrix, inputs = toy(*shape)
    found = decompose(params, matrix, inputs.T @ inputs if aware else None)
    down, up = found.factors(5)
    np.testing.assert_allclose(np.linalg.norm(down, axis=0), np.linalg.norm(up, axis=1), rtol=1e-5)
    if not aware:
        np.testing.assert_allclose(np.linalg.norm(down, axis=0), np.sqrt(found.spectrum[:5]), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("aware", [False, True])
def test_fewer_terms_are_the_first_of_all(shape, aware):
    params, matrix, inputs = toy(*shape)
    moment = inputs.T @ inputs if aware else None
    whole, some = decompose(params, matrix, moment), decompose(params, matrix, moment, terms=3)
    np.testing.assert_array_equal(some.spectrum, whole.spectrum)
    for one, two in zip(some.factors(3), whole.factors(3), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    with pytest.raises(InputError, match="map: rank 4 of 3 terms"):
        some.factors(4)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_louder_speech_gives_the_same_factors(shape, scale):
    """Up to the sign of a term: its two sides may both be negated."""
    params, matrix, inputs = toy(*shape)
    moment = inputs.T @ inputs / len(inputs)
    one, two = (decompose(params, matrix, m).factors(5) for m in (moment, scale * moment))
    for mine, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(np.abs(mine), np.abs(theirs), rtol=1e-3, atol=1e-4)


def test_all_but_the_kernel_stays():
    params, matrix, _ = toy(8, 12)
    found = decompose(params, matrix)
    assert factorise(params, found, 2)["map"]["bias"] is params["map"]["bias"]
    bare = {"map": {"kernel": params["map"]["kernel"]}}
    assert factorise(bare, found, 2)["map"].keys() == {"down", "up"}
    assert truncate(bare, found, 2)["map"].keys() == {"kernel"}


@pytest.mark.parametrize("seed", range(8))
def test_a_rank_above_the_greatest_falls_to_it(seed):
    """As a cut leaves it: of 50 stored terms 30 are enough, and no budget asks for a 31st."""
    rng = np.random.default_rng(seed)
    leaves = {"down": rng.normal(size=(30, 50)), "up": rng.normal(size=(50, 40))}
    found = decompose({"map": leaves}, Matrix("map", 1, (30, 40), 50))
    for budget in (70, 30 * 70, 40 * 70, 50 * 70, 10**6):
        rank = allocate([found], budget)["map"]
        assert rank is None or rank <= min(30, budget // 70)


@every_arch
def test_truncate_equals_factorise(arch, key):
    """The same function, dense or as two thin products, for every map of every model at once."""
    truncated = factored = weights(arch)
    for matrix in working(arch):
        found = decompose(truncated, matrix)
        truncated_arch = describe(arch, factored)
        truncated, factored = truncate(truncated, found, 2), factorise(factored, found, 2)
    small, inputs = describe(arch, factored), noise(arch, key)
    assert all(matrix.rank == 2 for matrix in working(small))
    assert len(truncated_arch.layers) == len(small.layers)
    for one, two in zip(
        forward(describe(arch, truncated), truncated, inputs).hidden,
        forward(small, factored, inputs).hidden,
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-5, rtol=1e-4)
    assert cost.parameters(small) == sum(leaf.size for leaf in jax.tree.leaves(factored))


@every_arch
def test_full_rank_changes_no_output(arch, key):
    params = full = weights(arch)
    for matrix in working(arch):
        full = factorise(full, decompose(full, matrix), matrix.rank or matrix.max_rank)
    inputs = noise(arch, key)
    np.testing.assert_allclose(
        forward(describe(arch, full), full, inputs).last, forward(arch, params, inputs).last, atol=1e-4, rtol=1e-3
    )


def test_factorising_again_is_factorising_once_at_the_lower_rank(key):
    params = weights(MEL)
    matrix = next(m for m in matrices(MEL) if m.path == "layers/0/attention/out")
    twice = factorise(params, decompose(params, matrix), 6)
    again = next(m for m in matrices(describe(MEL, twice)) if m.path == matrix.path)
    assert again.rank == 6
    twice, once = factorise(twice, decompose(twice, again), 3), factorise(params, decompose(params, matrix), 3)
    for params_ in (twice, once):
        assert get(params_, matrix.path)["down"].shape == (4, 4, 3)
    products = [dense_kernel(p, Matrix(matrix.path, 2, matrix.shape, 3)) for p in (twice, once)]
    np.testing.assert_allclose(*products, atol=1e-6)


def test_a_map_already_thin_is_never_grown(key):
    params = weights(MEL)
    matrix = next(m for m in matrices(MEL) if m.path == "layers/0/ffn/fc1")
    thin = factorise(params, decompose(params, matrix), 3)
    now = next(m for m in matrices(describe(MEL, thin)) if m.path == matrix.path)
    assert matrix.pays(5)
    assert not now.pays(3)
    assert now.pays(2)
    found = decompose(thin, now)
    assert allocate([found], now.size) == {now.path: None}
    assert allocate([found], now.size - 1) == {now.path: 2}


def test_energy_gives_the_least_rank():
    spectrum = np.array([3.0, 2.0, 1.0])
    assert [rank_for_energy(spectrum, e) for e in (1e-9, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for_energy(np.array([1.0, 0.0]), 1.0) == 1
    for wrong in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(InputError, match="share"):
            rank_for_energy(spectrum, wrong)


@pytest.mark.parametrize("seed", range(5))
def test_allocation_is_near_the_best_of_all(seed):
    """Against every possible choice: at most one step above the least error, and never over the budget."""
    rng = np.random.default_rng(seed)
    found = []
    for i, shape in enumerate([(6, 8), (9, 5), (4, 4)]):
        kernel = rng.normal(size=shape) * rng.uniform(0.2, 3) @ np.diag(np.logspace(0, -rng.uniform(0, 3), shape[1]))
        found.append(decompose({str(i): {"kernel": kernel}}, Matrix(str(i), 1, shape)))

    def outcome(ranks):
        spent = lost = 0.0
        for d in found:
            rank = ranks[d.matrix.path]
            spent += d.matrix.size if rank is None else d.matrix.factorised_size(rank)
            lost += 0.0 if rank is None else float((d.spectrum[rank:] ** 2).sum())
        return spent, lost

    choices = [[None, *(r for r in range(1, d.matrix.max_rank) if d.matrix.pays(r))] for d in found]
    every = [outcome(dict(zip("012", ranks, strict=True))) for ranks in itertools.product(*choices)]
    gaps = []
    for budget in np.linspace(40, 109, 12):
        spent, lost = outcome(allocate(found, budget))
        assert spent <= budget
        best = min(error for cost_, error in every if cost_ <= budget)
        step = max(float(d.spectrum[0] ** 2) for d in found)
        assert best <= lost + 1e-9
        assert lost <= best + step
        gaps.append(lost - best)
    assert np.median(gaps) <= 0.1 * step
    assert set(allocate(found, 109).values()) == {None}


def test_a_budget_below_rank_one_is_refused():
    params, matrix, _ = toy(8, 12)
    with pytest.raises(InputError, match=r"19 entries.*20"):
        allocate([decompose(params, matrix)], 19)
    with pytest.raises(InputError, match="nan"):
        allocate([decompose(params, matrix)], float("nan"))
    assert allocate([decompose(params, matrix)], 20) == {"map": 1}


@pytest.mark.parametrize("rank", [0, -3, 9])
def test_impossible_ranks_name_the_map_and_the_limit(rank):
    params, matrix, _ = toy(8, 12)
    for act in (truncate, factorise, fit):
        with pytest.raises(InputError, match=rf"map: rank {rank} .*8 × 12.*1 to 8"):
            act(params, decompose(params, matrix), rank)


def test_bad_weights_and_moments_are_named():
    params, matrix, _ = toy(8, 12)
    broken = put(params, "map/kernel", np.full((8, 12), np.nan))
    with pytest.raises(InputError, match="map: 96 of 96"):
        decompose(broken, matrix)
    with pytest.raises(InputError, match=r"\(7, 7\).*8 inputs"):
        decompose(params, matrix, np.eye(7))
    with pytest.raises(InputError, match="not finite"):
        decompose(params, matrix, np.full((8, 8), np.inf))
    with pytest.raises(InputError, match=r"map/kernel: shape \(8, 12\), expected \(12, 8\)"):
        decompose(params, Matrix("map", 1, (12, 8)))  # as many entries: a reshape would scramble them in silence
    with pytest.raises(InputError, match=r"map/down: no such path"):
        decompose(params, Matrix("map", 1, (8, 12), 3))
    with pytest.raises(InputError, match="empty"):
        decompose({"m": {"kernel": np.zeros((8, 0))}}, Matrix("m", 1, (8, 0)))
