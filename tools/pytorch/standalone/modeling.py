"""An exported model for transformers, which reads this file and model.py beside it out of the model's own folder.

    from transformers import AutoModel
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    model(input_values, attention_mask).last_hidden_state  # (batch, samples) at 16 kHz, 1 where there is sound

A model with a CTC layer is read by AutoModelForCTC too, whose output has `logits`, and its tokenizer by AutoTokenizer.
It normalises waveforms itself, where the model wants that.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .model import Model


class SpeechConfig(PretrainedConfig):
    """What the model is: `arch` is what `jaxssl` writes into arch.json."""

    model_type = "jaxssl-speech"

    def __init__(self, arch: dict | None = None, **options: Any):
        self.arch = arch or {}
        super().__init__(**options)


class SpeechModel(PreTrainedModel):
    """The encoder; `stride` samples lie between two frames."""

    config_class = SpeechConfig
    main_input_name = "input_values"

    def __init__(self, config: SpeechConfig):
        super().__init__(config)
        self.encoder = Model(config.arch)
        self.stride = self.encoder.stride
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Draw nothing: all weights come from the folder."""

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput | CausalLMOutput | tuple:
        """Run waveforms; hidden states are the input of the first layer, then each layer's output."""
        lengths = None if attention_mask is None else attention_mask.long().sum(1)
        out = self.encoder(input_values, lengths)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        found = self.output(out, tuple(out["hidden"]) if wanted else None)
        return found if return_dict is not False else found.to_tuple()

    def output(self, out: dict, hidden: tuple[Tensor, ...] | None) -> BaseModelOutput | CausalLMOutput:
        return BaseModelOutput(last_hidden_state=out["last"], hidden_states=hidden)


class SpeechForCTC(SpeechModel):
    """The same with the logits of its CTC layer, (batch, frames, symbols)."""

    def output(self, out: dict, hidden: tuple[Tensor, ...] | None) -> BaseModelOutput | CausalLMOutput:
        return CausalLMOutput(logits=out["logits"], hidden_states=hidden)
