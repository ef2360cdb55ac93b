"""s3prl's view of an exported model: a folder of its `upstream` with hubconf.py, or a `UpstreamExpert` anywhere.

from NAME.expert import UpstreamExpert  # NAME: what this folder is called where it was put
hidden = UpstreamExpert()([wav, another])["hidden_states"]  # each (batch, frames, width)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .model import load


class UpstreamExpert(nn.Module):
    """A frozen or fine-tuned upstream.

    Args:
        ckpt: the exported folder; default: the one this file lies in.
    """

    def __init__(self, ckpt: str | Path | None = None, model_config: str | None = None, **_: Any):
        super().__init__()
        self.model = load(ckpt or Path(__file__).parent)

    def get_downsample_rates(self, key: str) -> int:
        """Return samples from one frame to the next."""
        return self.model.stride

    def forward(self, wavs: Sequence[Tensor]) -> dict:
        """Run waveforms, each (samples,) at 16 kHz."""
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        out = self.model(pad_sequence(list(wavs), batch_first=True), lengths)
        return {"hidden_states": out["hidden"], "last_hidden_state": out["last"]}
