"""A model keeps its function whatever is packed, and what is packed is what was faster."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, get
from compress.blocks import occupancy
from compress.errors import InputError
from compress.sparse import apply_masks, block_masks
from jaxssl.inference.latency import Load, Timing, race
from jaxssl.inference.specialise import compiled, groups, specialise, unpacked
from jaxssl.models.arch import Blocks, LogMel, Rank
from jaxssl.models.sites import matrices
from tests.archs import MEL, forward, fresh, noise, transformer_layer, weights

ARCH = replace(
    MEL,
    front=LogMel(8, 1),
    layers=(transformer_layer(4, 24), transformer_layer(4, 24), transformer_layer(4, 24, fc1=Rank(3))),
)
LOAD = Load(0.5)


@pytest.fixture
def pruned(key):
    """Half the blocks of 4 of all feed-forward maps are empty, three quarters of those of the last layer's fc2."""
    params, maps = fresh(ARCH), {m.path: m for m in matrices(ARCH)}
    params = apply_masks(params, block_masks(params, [maps[f"layers/{i}/ffn/fc1"] for i in (0, 1)], 0.5, 4))
    params = apply_masks(params, block_masks(params, [maps[f"layers/{i}/ffn/fc2"] for i in (0, 1)], 0.5, 4))
    return apply_masks(params, block_masks(params, [maps["layers/2/ffn/fc2"]], 0.75, 4))


def decided(seconds):
    """A race whose times are given, by map and program; everything else takes a second."""

    def fake(programs, *, rounds):
        assert rounds == 4
        for program in programs.values():
            program.run()
        (times,) = [t for names, t in seconds if names == set(programs)][:1] or [{}]
        seconds[:] = seconds[1:]
        return {name: Timing(p.load, (times.get(name, 1.0),) * rounds) for name, p in programs.items()}

    return fake


def names(*sizes):
    return {"dense", *(str(size) for size in sizes)}


def test_groups_are_maps_of_one_kind_shape_and_occupancy(pruned):
    found = groups(ARCH, pruned, (2, 4, 5, 8, 16))
    assert [[m.path for m in group.maps] for group in found] == [
        ["layers/0/ffn/fc1", "layers/1/ffn/fc1"],
        ["layers/0/ffn/fc2", "layers/1/ffn/fc2"],
        ["layers/2/ffn/fc2"],
    ]
    for group in found:
        kept = dict(group.kept)
        assert kept[4] * 4 / group.first.fan_in == occupancy(pruned, group.first, 4)
        assert kept[2] == 2 * kept[4]
        assert 5 not in kept  # divides nothing
        assert 16 not in kept  # not 24


def test_only_maps_that_an_arch_can_pack_are_tried(key):
    """Not `project`, nor what is empty, factorised or packed already."""
    arch = replace(ARCH, layers=(transformer_layer(0, 24, fc1=Rank(2), fc2=Blocks(4, 1)),))
    params = jax.tree.map(jnp.zeros_like, fresh(arch))
    assert groups(arch, params, (2, 4)) == ()


def test_what_is_faster_is_packed_in_its_best_size(pruned):
    seconds = [
        (names(2, 4), {"dense": 1.0, "2": 0.8, "4": 0.5}),
        (names(2, 4), {"dense": 1.0, "2": 0.96, "4": 0.97}),
        (names(2, 4), {"dense": 1.0, "2": 0.9, "4": 2.0}),
    ]
    ticks = []
    arch, params, rows = specialise(
        ARCH, pruned, LOAD, sizes=(2, 4), rounds=4, race=decided(seconds), tick=lambda: ticks.append(1)
    )
    assert not seconds
    assert len(ticks) == 3
    assert list(arch.layers) == [
        transformer_layer(4, 24, fc1=Blocks(4, 2)),
        transformer_layer(4, 24, fc1=Blocks(4, 2)),
        transformer_layer(4, 24, fc1=Rank(3), fc2=Blocks(2, rows[2]["kept"])),
    ]
    assert [(row["path"], row["maps"], row["size"], row["packed"]) for row in rows] == [
        ("layers/0/ffn/fc1", 2, 4, True),
        ("layers/0/ffn/fc2", 2, 2, False),
        ("layers/2/ffn/fc2", 1, 2, True),
    ]
    assert rows[0] == {
        "path": "layers/0/ffn/fc1",
        "maps": 2,
        "shape": "16 × 24",
        "size": 4,
        "kept": 2,
        "occupancy": 0.5,
        "dense_ms": 1000.0,
        "packed_ms": 500.0,
        "speedup": 2.0,
        "speedup_low": 2.0,
        "speedup_high": 2.0,
        "packed": True,
    }
    assert get(params, "layers/1/ffn/fc1").keys() == {"blocks", "index", "bias"}


@pytest.mark.parametrize(("gain", "packed"), [(1.3, False), (1.2, True)])
def test_the_gain_is_the_least_speed_up(pruned, gain, packed):
    seconds = [(names(4), {"4": 0.8})] * 3
    arch, _, rows = specialise(ARCH, pruned, LOAD, sizes=(4,), rounds=4, gain=gain, race=decided(seconds))
    assert {row["packed"] for row in rows} == {packed}
    assert (arch == ARCH) == (not packed)


def test_the_function_stays_whatever_is_packed(pruned):
    x = noise(ARCH, jax.random.key(3))
    expected = forward(ARCH, pruned, x).last
    for times in ({}, {"2": 0.5}, {"4": 0.5}):
        fake = decided([(names(2, 4), times)] * 3)
        arch, params, rows = specialise(ARCH, pruned, LOAD, sizes=(2, 4), rounds=4, race=fake)
        assert [row["packed"] for row in rows] == [bool(times)] * 3, rows
        far = jnp.linalg.norm(forward(arch, params, x).last - expected) / jnp.linalg.norm(expected)
        assert float(far) < 1e-5
        back, again = unpacked(arch, params)
        assert back == ARCH
        for path, leaf in flatten(pruned).items():
            np.testing.assert_array_equal(flatten(again)[path], leaf, err_msg=path)


def test_specialising_again_changes_nothing_that_is_packed(pruned):
    once = specialise(ARCH, pruned, LOAD, sizes=(4,), rounds=4, race=decided([(names(4), {"4": 0.5})] * 3))
    again = specialise(*once[:2], LOAD, sizes=(2, 4), rounds=4, race=decided([]))
    assert again[0] == once[0]
    assert again[2] == []


def test_a_model_without_empty_blocks_stays_as_it_is(key):
    params = weights(ARCH)
    arch, same, rows = specialise(ARCH, params, LOAD, sizes=(2, 4))
    assert (arch, rows) == (ARCH, [])
    assert all(flatten(same)[path] is leaf for path, leaf in flatten(params).items())


def test_what_is_timed_are_the_loads_frames(pruned, monkeypatch):
    """Really timed, and both forms compute the same product."""
    outputs = []

    def keep(function, load, *arguments):
        outputs.append((arguments[0].shape, function(*arguments)))
        return compiled(function, load, *arguments)

    monkeypatch.setattr("jaxssl.inference.specialise.compiled", keep)
    _, _, rows = specialise(ARCH, pruned, Load(0.5, 3), sizes=(4,), rounds=2, race=race)
    frames = 3 * ARCH.front.frames(8000)
    assert {shape[:2] for shape, _ in outputs} == {(1, frames)}
    for (_, dense), (_, packed) in zip(outputs[::2], outputs[1::2], strict=True):
        np.testing.assert_allclose(packed, dense, atol=1e-5)
    for row in rows:
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert min(row["dense_ms"], row["packed_ms"]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sizes": ()}, r"block sizes \(\): name one"),
        ({"sizes": (4, 0)}, r"block sizes \(4, 0\)"),
        ({"rounds": 0}, "0 rounds"),
        ({"gain": 0}, "a gain of 0"),
        ({"load": Load(0.001)}, "0.001 s × 1 gives"),
        ({"load": Load(1.0, 0)}, "1 s × 0 gives 0 frames"),
    ],
)
def test_what_cannot_be_timed_is_refused(pruned, words, message):
    with pytest.raises(InputError, match=message):
        specialise(ARCH, pruned, **{"load": LOAD, **words})
