"""The entry that s3prl and torch.hub look for."""

from typing import Any

from .expert import UpstreamExpert


def jaxssl_local(ckpt: str | None = None, **options: Any) -> UpstreamExpert:
    """Return the model beside this file, or the one in the folder `ckpt`."""
    return UpstreamExpert(ckpt, **options)
