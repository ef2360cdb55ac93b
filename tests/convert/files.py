"""Small checkpoints in other programs' forms, made here: names and shapes written out by hand, values at random."""

import struct

import numpy as np

WIDTH, FFN, LAYERS, CHANNELS, TAPS, GROUPS = 16, 24, 2, 12, 8, 4
CONVS = ((CHANNELS, 10, 5), (CHANNELS, 3, 2), (CHANNELS, 3, 2), (CHANNELS, 2, 2))

MODEL = {
    "_name": "hubert",
    "extractor_mode": "default",
    "encoder_layers": LAYERS,
    "encoder_embed_dim": WIDTH,
    "encoder_ffn_embed_dim": FFN,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": "[(12,10,5)] + [(12,3,2)] * 2 + [(12,2,2)]",
    "conv_bias": False,
    "conv_pos": TAPS,
    "conv_pos_groups": GROUPS,
    "final_dim": 6,
    "untie_final_proj": True,
    "logit_temp": 0.1,
    "dropout": 0.1,
    "dropout_input": 0.1,
    "encoder_layerdrop": 0.05,
}
TASK = {"_name": "hubert_pretraining", "normalize": False}


def encoder_shapes():
    """Shapes of a post-LN encoder with a group-norm extractor, as fairseq names them."""
    shapes = {
        "mask_emb": (WIDTH,),
        "feature_extractor.conv_layers.0.2.weight": (CHANNELS,),
        "feature_extractor.conv_layers.0.2.bias": (CHANNELS,),
        "layer_norm.weight": (CHANNELS,),
        "layer_norm.bias": (CHANNELS,),
        "post_extract_proj.weight": (WIDTH, CHANNELS),
        "post_extract_proj.bias": (WIDTH,),
        "encoder.pos_conv.0.bias": (WIDTH,),
        "encoder.pos_conv.0.weight_g": (1, 1, TAPS),
        "encoder.pos_conv.0.weight_v": (WIDTH, WIDTH // GROUPS, TAPS),
        "encoder.layer_norm.weight": (WIDTH,),
        "encoder.layer_norm.bias": (WIDTH,),
    }
    for i, (channels, kernel, _) in enumerate(CONVS):
        shapes[f"feature_extractor.conv_layers.{i}.0.weight"] = (channels, CHANNELS if i else 1, kernel)
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}."
        for name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"):
            shapes |= {f"{layer}{name}.weight": (WIDTH, WIDTH), f"{layer}{name}.bias": (WIDTH,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}{name}.weight": (WIDTH,), f"{layer}{name}.bias": (WIDTH,)}
        shapes |= {f"{layer}fc1.weight": (FFN, WIDTH), f"{layer}fc1.bias": (FFN,)}
        shapes |= {f"{layer}fc2.weight": (WIDTH, FFN), f"{layer}fc2.bias": (WIDTH,)}
    return shapes


def hubert_shapes(classes=11, sets=1):
    head = {"label_embs_concat": (classes, 6), "final_proj.weight": (6 * sets, WIDTH), "final_proj.bias": (6 * sets,)}
    return encoder_shapes() | head


def wav2vec_shapes():
    return encoder_shapes() | {
        "quantizer.vars": (1, 8, 4),
        "quantizer.weight_proj.weight": (8, CHANNELS),
        "quantizer.weight_proj.bias": (8,),
        "project_q.weight": (5, 4),
        "project_q.bias": (5,),
        "final_proj.weight": (5, WIDTH),
        "final_proj.bias": (5,),
    }


def ctc_shapes(symbols=7):
    inner = {f"w2v_encoder.w2v_model.{name}": shape for name, shape in encoder_shapes().items()}
    return inner | {"w2v_encoder.proj.weight": (symbols, WIDTH), "w2v_encoder.proj.bias": (symbols,)}


def draw(torch, shapes):
    """Draw a state dict, positive so that a weight norm never divides by zero."""
    rng = np.random.default_rng(0)
    return {name: torch.from_numpy(rng.uniform(0.1, 1, shape).astype(np.float32)) for name, shape in shapes.items()}


def _name(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variable(name, array):
    kinds = ("float32", "int8", "int16", "int32", "float16")
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return _name(name) + shape + struct.pack("<BI", kinds.index(str(array.dtype)), array.nbytes) + array.tobytes()


def ctranslate2_file(arrays, *, version=6, spec="WhisperSpec"):
    """Write the bytes of CTranslate2's `model.bin`."""
    head = struct.pack("<I", version) + _name(spec) + struct.pack("<II", 3, len(arrays))
    aliases = struct.pack("<I", 1) + _name("decoder/projection/weight") + _name("decoder/embeddings/weight")
    return head + b"".join(_variable(name, array) for name, array in arrays.items()) + aliases
