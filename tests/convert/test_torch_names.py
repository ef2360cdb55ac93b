"""Every name is used exactly once or reported, all together, before anything is read."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert import naming
from jaxssl.models.arch import Arch, Conv, CosineHead, PositionalConvolution, Waveform
from jaxssl.models.model import shapes
from tests.archs import transformer_layer
from tests.convert.files import CONVS, encoder_shapes, hubert_shapes

ARCH = Arch(
    front=Waveform(tuple(Conv(*conv) for conv in CONVS)),
    width=16,
    layers=(transformer_layer(4, 24),) * 2,
    position=PositionalConvolution(8, 4),
    mask_embedding=True,
    head=CosineHead(6, (11,)),
)


@dataclass
class Fake:
    shape: tuple
    dtype: str = "float32"
    readable: bool = True

    def read(self):
        assert self.readable, "read before every name was checked"
        return np.arange(np.prod(self.shape), dtype=np.float32).reshape(self.shape)


def fakes(shapes, **kwargs):
    return {name: Fake(shape, **kwargs) for name, shape in shapes.items()}


def test_layouts_put_numbers_where_they_belong():
    params, left = naming.build(ARCH, fakes(hubert_shapes()), "fairseq")
    flat = flatten(params)
    assert left == ()
    assert {path: leaf.shape for path, leaf in flat.items()} == {p: s.shape for p, s in flatten(shapes(ARCH)).items()}
    assert all(leaf.dtype == np.float32 for leaf in flat.values())
    square = np.arange(256).reshape(16, 16)  # (out, in); out is 4 heads of 4
    assert flat["layers/1/attention/q/kernel"][3, 2, 1] == square[2 * 4 + 1, 3]
    assert flat["layers/1/attention/out/kernel"][2, 1, 3] == square[3, 2 * 4 + 1]
    assert flat["layers/1/attention/k/bias"][2, 1] == 2 * 4 + 1
    assert flat["layers/0/ffn/fc1/kernel"][3, 20] == np.arange(24 * 16).reshape(24, 16)[20, 3]
    assert flat["front/convs/1/conv/kernel"][2, 1, 5] == np.arange(12 * 12 * 3).reshape(12, 12, 3)[5, 1, 2]


def test_all_problems_come_together_and_nothing_is_read():
    tensors = fakes(hubert_shapes(), readable=False)
    tensors["encoder.layers.0.adapter.weight"] = Fake((3,))
    tensors["encoder.layers.0.fc1.weight"] = Fake((23, 16))
    tensors["encoder.layers.1.fc1.bias"] = Fake((24,), "int8")
    tensors["pre_extract_proj.bias"] = Fake((16,))
    del tensors["encoder.layers.1.self_attn.q_proj.bias"]
    del tensors["mask_emb"]
    with pytest.raises(InputError) as caught:
        naming.build(ARCH, tensors, "fairseq", where="x.pt")
    message = str(caught.value)
    assert message.startswith("x.pt: 6 names do not fit the model")
    for part in (
        "unknown: encoder.layers.0.adapter.weight",
        "of another shape: encoder.layers.0.fc1.weight is (23, 16), the model wants (24, 16)",
        "not floating: encoder.layers.1.fc1.bias is int8",
        "assigned twice: pre_extract_proj.bias (to project/bias)",
        "encoder.layers.1.self_attn.q_proj.bias (for layers/1/attention/q/bias)",
        "mask_emb (for mask_embedding)",
    ):
        assert part in message


def test_names_left_behind_are_listed():
    arch = replace(ARCH, head=None)
    tensors = fakes(encoder_shapes()) | fakes({"quantizer.vars": (1,)})
    assert naming.build(arch, tensors, "fairseq", left=(r"quantizer\..*",))[1] == ("quantizer.vars",)


@pytest.mark.parametrize("dialect", ["fairseq", "huggingface"])
def test_every_path_has_a_source_name_that_leads_back_to_it(dialect):
    large = replace(ARCH, front=replace(ARCH.front, norm="layer", bias=True))
    for arch in (ARCH, large):
        for path in flatten(shapes(replace(arch, head=None if dialect == "huggingface" else arch.head))):
            rules = arch.names(dialect)
            name = naming._source_name(path, rules)
            found = [rule for rule in rules if (m := re.fullmatch(rule.pattern, name)) and m.expand(rule.path) == path]
            assert found, (path, name)
