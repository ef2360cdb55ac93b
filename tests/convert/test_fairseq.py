"""fairseq's own files give fairseq's own numbers; every form its files come in is read."""

import json
import sys
from argparse import Namespace
from collections import defaultdict
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert.config import parse_convs
from jaxssl.convert.conversion import read
from jaxssl.models.arch import Conv, CosineHead, PositionalConvolution
from tests.archs import forward, transformer_layer
from tests.convert import files
from tests.golden import meets

TOLERANCE = 1e-4
MODELS = ("hubert_base_tiny", "hubert_large_tiny")


@pytest.fixture(scope="module", params=MODELS)
def golden(request, shared):
    return read(shared / f"fairseq/{request.param}.pt"), np.load(shared / f"fairseq/{request.param}.golden.npz")


def close(name, ours, theirs):
    meets({name: ours}, {name: theirs}, atol=TOLERANCE)


def padded(golden):
    return np.stack([np.pad(golden[f"raw_{i}"], (0, 40000 - len(golden[f"raw_{i}"]))) for i in (0, 1)])


def together(converted, arrays, mask):
    """Both utterances in one batch, by one program whatever is masked."""
    lengths = arrays["lengths"].astype(np.int32)
    return forward(converted.arch, converted.params, padded(arrays), lengths, mask=mask, padding="fairseq")


@pytest.mark.parametrize("row", [0, 1])
def test_each_utterance_alone(golden, row):
    converted, arrays = golden
    output = forward(converted.arch, converted.params, arrays[f"raw_{row}"][None])
    for i in (1, 2, 3):
        close(f"single_{row}_layer_{i}", output.hidden[i], arrays[f"single_{row}_layer_{i}"])
    close(f"single_{row}_layer_none", output.last, arrays[f"single_{row}_layer_none"])


def test_padded_batch(golden):
    converted, arrays = golden
    output = together(converted, arrays, np.zeros_like(arrays["mask_indices"]))
    valid = ~arrays["frame_padding_mask"]
    assert output.lengths[-1].tolist() == valid.sum(1).tolist()
    close("conv_out", output.extracted, arrays["conv_out"].transpose(0, 2, 1))
    for ours, name in ((output.features, "post_extract_proj"), (output.last, "layer_none")):
        close(name, np.asarray(ours)[valid], arrays[name][valid])
    for i in (1, 2, 3):
        close(f"layer_{i}", np.asarray(output.hidden[i])[valid], arrays[f"layer_{i}"][valid])


def test_pretraining_head(golden):
    converted, arrays = golden
    mask = arrays["mask_indices"]
    output = together(converted, arrays, mask)
    valid = ~arrays["frame_padding_mask"]
    close("masked_encoder_out", np.asarray(output.last)[valid], arrays["masked_encoder_out"][valid])
    targets = arrays["targets"][:, :: arrays["targets"].shape[1] // mask.shape[1]][:, : mask.shape[1]]
    positive = np.take_along_axis(np.asarray(output.logits), targets[..., None], 2)[..., 0]
    close("logit_m", positive[valid & mask], arrays["logit_m"][:, 0])
    close("logit_u", positive[valid & ~mask], arrays["logit_u"][:, 0])


def test_args_and_s3prl_forms_are_the_same_model(shared):
    base = read(shared / "fairseq/hubert_base_tiny.pt")
    assert base.arch.head == CosineHead(16, (54,))
    for name in ("hubert_base_tiny_args.pt", "hubert_base_tiny.s3prl_converted.pt"):
        other = read(shared / "fairseq" / name)
        assert other.arch == base.arch
        assert jax.tree.all(jax.tree.map(np.array_equal, other.params, base.params))


def save(torch, path, shapes, **entries):
    torch.save({"model": files.draw(torch, shapes), **entries}, path)
    return path


def config(**model):
    return {"model": files.MODEL | model, "task": files.TASK}


@pytest.fixture
def plain(torch, tmp_path):
    return read(save(torch, tmp_path / "plain.pt", files.hubert_shapes(), cfg=config(), args=None))


def test_architecture_is_read_from_the_file(plain):
    arch = plain.arch
    assert arch.front.convs == (Conv(12, 10, 5), Conv(12, 3, 2), Conv(12, 3, 2), Conv(12, 2, 2))
    assert (arch.width, arch.layers) == (16, (transformer_layer(4, 24),) * 2)
    assert (arch.position, arch.head) == (PositionalConvolution(8, 4), CosineHead(6, (11,)))
    assert (arch.dropout.hidden, arch.dropout.features, arch.dropout.layer) == (0.1, 0.1, 0.05)
    assert arch.mask_embedding


@pytest.mark.parametrize("kwargs", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_the_legacy_format(torch, tmp_path, plain, dtype, kwargs):
    state = {name: t.to(getattr(torch, dtype)) for name, t in files.draw(torch, files.hubert_shapes()).items()}
    torch.save(
        {"cfg": config(), "model": state, "last_optimizer_state": {"a": torch.ones(9)}}, tmp_path / "x.pt", **kwargs
    )
    converted = read(tmp_path / "x.pt")
    assert converted.arch == plain.arch
    for path, leaf in flatten(converted.params).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, flatten(plain.params)[path], rtol=2**-8)


@pytest.fixture
def omegaconf(monkeypatch):
    """Classes of omegaconf's names and layout, so that pickles name them as published files do."""
    made = {}
    for module, names in {
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
        "omegaconf.nodes": ["AnyNode"],
        "fairseq.dataclass.configs": ["FairseqConfig"],
    }.items():
        fake = ModuleType(module)
        for name in names:
            made[name] = type(name, (), {"__module__": module})
            setattr(fake, name, made[name])
        monkeypatch.setitem(sys.modules, module.split(".")[0], ModuleType(module.split(".")[0]))
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setitem(sys.modules, "fairseq.dataclass", ModuleType("fairseq.dataclass"))

    def metadata(name, **extra):
        made_one = made[name]()
        vars(made_one).update(
            ref_type=Any, object_type=made["FairseqConfig"], optional=True, key=None, flags={}, **extra
        )
        return made_one

    def wrap(value, parent=None):
        if not isinstance(value, (dict, list)):
            node = made["AnyNode"]()
            vars(node).update(_metadata=metadata("Metadata"), _parent=parent, _val=value)
            return node
        container = made["DictConfig" if isinstance(value, dict) else "ListConfig"]()
        held = metadata("ContainerMetadata", key_type=Any, element_type=int, resolver_cache=defaultdict(dict))
        content = (
            {key: wrap(item, container) for key, item in value.items()}
            if isinstance(value, dict)
            else [wrap(item, container) for item in value]
        )
        vars(container).update(_metadata=held, _parent=parent, _content=content)
        return container

    return wrap


def test_omegaconf_configuration(torch, tmp_path, plain, omegaconf):
    wrapped = omegaconf(config(latent_temp=[2.0, 0.5]) | {"common": {"seed": 1}})
    converted = read(save(torch, tmp_path / "x.pt", files.hubert_shapes(), cfg=wrapped, args=None))
    assert converted.arch == plain.arch


def test_large_and_label_sets(torch, tmp_path):
    shapes = {
        k: v
        for k, v in files.hubert_shapes(13, sets=2).items()
        if not k.startswith("feature_extractor.conv_layers.0.2")
    }
    for i in range(4):
        shapes[f"feature_extractor.conv_layers.{i}.0.bias"] = (12,)
        shapes |= {f"feature_extractor.conv_layers.{i}.2.1.{name}": (12,) for name in ("weight", "bias")}
    cfg = config(extractor_mode="layer_norm", conv_bias=True, layer_norm_first=True)
    cfg["task"] = {"normalize": True}
    sets = [["<s>", "a", "b", "c", "d"], list("abcdefgh")]
    state = {"model_weight": files.draw(torch, shapes), "model_cfg": cfg["model"], "task_cfg": cfg["task"]}
    torch.save(state | {"dictionaries_symbols": sets}, tmp_path / "x.pt")
    arch = read(tmp_path / "x.pt").arch
    assert (arch.front.norm, arch.front.bias, arch.front.normalize, arch.norm_first) == ("layer", True, True, True)
    assert arch.head == CosineHead(6, (5, 8))


def test_wav2vec(torch, tmp_path):
    converted = read(save(torch, tmp_path / "x.pt", files.wav2vec_shapes(), cfg=config(_name="wav2vec2")))
    assert converted.kind == "fairseq wav2vec 2.0"
    assert converted.arch.front.counts == "convolutions"
    assert converted.arch.head is None
    assert converted.arch.mask_embedding
    assert set(converted.left_behind) == set(files.wav2vec_shapes()) - set(files.encoder_shapes())


@pytest.fixture
def dictionary(monkeypatch):
    """Classes `fairseq.data.dictionary.Dictionary`, as fairseq pickles them."""
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    made = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    monkeypatch.setattr(sys.modules["fairseq.data.dictionary"], "Dictionary", made, raising=False)

    def build(symbols):
        one = made()
        vars(one).update(symbols=list(symbols), count=[1] * len(symbols), indices={s: i for i, s in enumerate(symbols)})
        return one

    return build


CTC = {"_name": "hubert_ctc", "dropout": 0.0, "layerdrop": 0.2, "normalize": "${task.normalize}"}


@pytest.mark.parametrize("inner", [config(), Namespace(**files.MODEL, **{"normalize": False, "task": "x"})])
def test_ctc_with_its_encoders_configuration(torch, tmp_path, plain, dictionary, inner):
    cfg = {"model": CTC | {"w2v_args": inner}, "task": {"normalize": False}}
    task_state = {"target_dictionary": dictionary("<>|abcd")}
    converted = read(save(torch, tmp_path / "x.pt", files.ctc_shapes(), cfg=cfg, task_state=task_state))
    assert converted.arch.layers == plain.arch.layers
    assert converted.arch.head is None
    assert converted.notes == ()
    arrays = safetensors.numpy.load(converted.extra["ctc/ctc.safetensors"])
    drawn = files.draw(torch, files.ctc_shapes())
    np.testing.assert_array_equal(arrays["kernel"], drawn["w2v_encoder.proj.weight"].numpy().T)
    np.testing.assert_array_equal(arrays["bias"], drawn["w2v_encoder.proj.bias"].numpy())
    assert json.loads(converted.extra["ctc/symbols.json"]) == {"symbols": list("<>|abcd")}


def test_ctc_without_its_encoders_configuration(torch, tmp_path, plain):
    cfg = {"model": CTC | {"w2v_args": None}, "task": {"normalize": True}}
    path = save(torch, tmp_path / "x.pt", files.ctc_shapes(), cfg=cfg)
    converted = read(path, heads=4)
    assert converted.arch.front.convs == plain.arch.front.convs
    assert converted.arch.front.normalize
    assert converted.arch.layers == plain.arch.layers
    assert (converted.arch.dropout.hidden, converted.arch.dropout.layer) == (0.0, 0.2)
    notes = "\n".join(converted.notes)
    assert "come from shapes" in notes
    assert "heads 4 (as --heads says)" in notes
    assert "from the fine-tuning task" in notes
    assert "without its symbols" in notes
    with pytest.raises(InputError, match=r"width 16 not its heads; say python -m tools.convert_torch .* OUT --heads N"):
        read(path)


def test_ctc_from_the_time_of_args(torch, tmp_path, plain):
    args = Namespace(arch="wav2vec_ctc", normalize=False, w2v_args=Namespace(**(files.MODEL | {"_name": None})))
    converted = read(save(torch, tmp_path / "x.pt", files.ctc_shapes(), args=args))
    assert converted.arch.layers == plain.arch.layers
    assert converted.arch.front.counts == "convolutions"  # HuBERT's is "samples"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_layers": 12}, "encoder_layers is 12 in the configuration and 2 in the arrays"),
        ({"encoder_ffn_embed_dim": 32}, "encoder_ffn_embed_dim is 32 in the configuration and 24 in the arrays"),
        (
            {"extractor_mode": "layer_norm"},
            "extractor_mode is layer_norm in the configuration and default in the arrays",
        ),
        ({"activation_fn": "relu"}, "activation_fn is 'relu'; what is supported: 'gelu'"),
        ({"layer_type": "conformer"}, "layer_type is 'conformer'"),
        ({"pos_conv_depth": 5}, "pos_conv_depth is 5 in the configuration and 1 in the arrays"),
        ({"pos_enc_type": "rope"}, "pos_enc_type is 'rope'"),
        ({"attn_type": "espnet"}, "attn_type is 'espnet'"),
        ({"target_glu": True}, "target_glu is True"),
        ({"_name": "wav2vec_seq2seq"}, "a model of type 'wav2vec_seq2seq'"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "is no list of"),
        ({"conv_feature_layers": "[(12,10,5)]"}, "lists 1 convolutions, the arrays are 4"),
        ({"conv_bias": "yes"}, "conv_bias is yes in the configuration and False in the arrays"),
        ({"logit_temp": "warm"}, "logit_temp is 'warm', which is no float"),
        ({"encoder_attention_heads": None}, "encoder_attention_heads is neither in the configuration nor"),
        ({"encoder_attention_heads": 5}, "encoder_embed_dim 16 is no multiple of encoder_attention_heads 5"),
    ],
)
def test_contradictions_and_unsupported_options_are_refused_by_name(torch, tmp_path, change, message):
    path = save(torch, tmp_path / "x.pt", files.hubert_shapes(), cfg=config(**change))
    with pytest.raises(InputError, match=message):
        read(path)


def test_an_extractor_as_wide_as_the_encoder_has_no_projection(torch, tmp_path):
    shapes = {name: shape for name, shape in files.hubert_shapes().items() if "post_extract_proj" not in name}
    with pytest.raises(InputError, match=r"missing: post_extract_proj.bias"):
        read(save(torch, tmp_path / "x.pt", shapes, cfg=config()))
    shapes |= {
        "layer_norm.weight": (16,),
        "layer_norm.bias": (16,),
        "feature_extractor.conv_layers.3.0.weight": (16, 12, 2),
    }
    listed = "[(12,10,5)] + [(12,3,2)] * 2 + [(16,2,2)]"
    assert read(save(torch, tmp_path / "x.pt", shapes, cfg=config(conv_feature_layers=listed))).arch.project is None


def test_unknown_missing_and_misshapen_names_come_together(torch, tmp_path):
    shapes = files.hubert_shapes() | {"encoder.extra": (1,), "layer_norm.bias": (11,)}
    del shapes["mask_emb"], shapes["encoder.layers.1.fc2.bias"]
    with pytest.raises(InputError) as caught:
        read(save(torch, tmp_path / "x.pt", shapes, cfg=config()))
    for part in ("unknown: encoder.extra", "layer_norm.bias is (11,)", "missing: encoder.layers.1.fc2.bias"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[(512,10,5)] * 99",
        "[(1,2)]",
        "512",
        "[(512,10,5)",
        "[(512.0,10,5)]",
        "[(512,10,-5)]",
        "eval('1')",
        "[x]",
        "9**9",
        "",
    ],
)
def test_conv_layers_are_parsed_not_evaluated(tmp_path, text):
    with pytest.raises(InputError, match="conv_feature_layers"):
        parse_convs(tmp_path, text)


def test_conv_layers_of_published_models(tmp_path):
    convs = parse_convs(tmp_path, "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    assert convs == (Conv(512, 10, 5), *(Conv(512, 3, 2),) * 4, *(Conv(512, 2, 2),) * 2)
