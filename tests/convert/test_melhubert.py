"""The study's own checkpoints, plain, pruned and distilled, give its own features."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.arch import ClusterHead, LogMel
from tests.archs import forward
from tests.golden import meets

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "melhubert"


def features(folder, checkpoint):
    converted = read(folder / checkpoint)
    golden = np.load(folder / "forward/tiny20_libri960.npz")
    return converted, forward(converted.arch, converted.params, golden["mel_input"], golden["mel_len"].astype(np.int32))


def test_plain(folder):
    converted, output = features(folder, "ckpt/tiny20.ckpt")
    golden = np.load(folder / "forward/tiny20_libri960.npz")
    lengths = golden["mel_len"]
    assert (converted.arch.front, converted.arch.head) == (LogMel(40, 2), ClusterHead(32))
    found = {"pre_feat": output.features, "last": output.last, "logits": output.logits}
    found |= {f"hidden_{i}": output.hidden[i] for i in (1, 2, 3)}
    meets(found, golden, atol=TOLERANCE, lengths=lengths)
    assert sum(leaf.size for leaf in _leaves(converted.params)) == int(golden["total_params"])


@pytest.mark.parametrize(
    ("checkpoint", "golden"),
    [
        ("weight/pure/pruned-0.5.ckpt", "weight/pure/features-0.5.npz"),
        ("head/l1-by_layer/pure/states_prune_6.ckpt", "head/l1-by_layer/pure/features.npz"),
        ("head/data-driven-by_whole/pure/states_prune_6.ckpt", "head/data-driven-by_whole/pure/features.npz"),
        ("row/pure/states_prune_64.ckpt", "row/pure/features.npz"),
        ("distill/run_nomasked_T1_a1/last-step.ckpt", "distill/run_nomasked_T1_a1/features.npz"),
    ],
)
def test_compressed(folder, checkpoint, golden):
    _, output = features(folder, checkpoint)
    golden = np.load(folder / golden)
    found = {f"hidden_{i}_first101": hidden for i, hidden in enumerate(output.hidden) if i}
    meets({"last": output.last, **found}, golden, atol=TOLERANCE, lengths=golden["mel_len"])


def test_layers_are_counted_one_by_one(folder):
    heads = read(folder / "head/data-driven-by_whole/pure/states_prune_9.ckpt").arch.layers
    assert sorted(layer.mixer.heads for layer in heads) == [2, 3, 4]
    rows = read(folder / "row/pure/states_prune_96.ckpt").arch.layers
    assert {layer.ffn.size for layer in rows} == {96}
    assert len(read(folder / "distill/run_nomasked_T1_a1/last-step.ckpt").arch.layers) == 2
    assert read(folder / "pretrain20/last-step.ckpt").arch.width == 64


def test_pruned_weights_are_zero(folder):
    converted = read(folder / "weight/pure/pruned-0.5.ckpt")
    zeros = sum(int((leaf == 0).sum()) for leaf in _leaves(converted.params["layers"]))
    assert zeros >= 49824
    assert "49824 of 99648" in converted.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_layers": 4}, "encoder_layers is 4 in the configuration and 3 in the arrays"),
        ({"encoder_embed_dim": 128}, "encoder_embed_dim is 128 in the configuration and 64 in the arrays"),
        ({"conv_pos_groups": 8}, "conv_pos_groups is 8 in the configuration and 4 in the arrays"),
        ({"attention_type": "sparse"}, "attention_type is 'sparse'"),
        ({"pos_conv_depth": 3}, "pos_conv_depth is 3"),
        ({"encoder_attention_heads": 5}, "encoder_embed_dim 64 is no multiple of encoder_attention_heads 5"),
    ],
)
def test_contradictions_are_refused(torch, folder, tmp_path, change, message):
    state = torch.load(folder / "ckpt/tiny20.ckpt", weights_only=False)
    state["Upstream_Config"]["melhubert"].update(change)
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.ckpt")


def test_frame_period_must_agree_with_the_features(torch, folder, tmp_path):
    state = torch.load(folder / "ckpt/tiny20.ckpt", weights_only=False)
    state["Args"].frame_period = 10
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="frame_period is 10 ms, feat_emb_dim 80 means 20 ms"):
        read(tmp_path / "x.ckpt")


def test_the_older_name_of_the_configuration_is_read(torch, folder, tmp_path):
    state = torch.load(folder / "ckpt/tiny20.ckpt", weights_only=False)
    state["Upstream_Config"] = {"hubert": state["Upstream_Config"]["melhubert"]}
    torch.save(state, tmp_path / "x.ckpt")
    assert read(tmp_path / "x.ckpt").arch == read(folder / "ckpt/tiny20.ckpt").arch


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
