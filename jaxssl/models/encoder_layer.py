"""One layer of the encoder, whatever its mixer."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxssl.models.arch import Arch, Layer
from jaxssl.models.held import Memory, delayed
from jaxssl.models.keys import Keys
from jaxssl.models.layers import LayerNorm, dropout
from jaxssl.models.rates.merging import Merging
from jaxssl.models.rates.track import Track


class EncoderLayer(nnx.Module):
    """A mixer and a feed-forward block, each with a residual and a norm: before the block (pre-LN) or after the sum.

    In a Conformer's layer, which is pre-LN, a convolution stands between them. With a macaron block before both, the
    feed-forward blocks count half, and a norm of all is last.
    """

    def __init__(self, arch: Arch, layer: Layer, *, lends: bool = False, rngs: Keys):
        self.norm_first, self.rate = arch.norm_first, arch.dropout.hidden
        self.place, width = layer.mixer.place, arch.width
        self.empty = all(block.empty for block in layer.blocks) and layer.adapter is None
        mixer = layer.mixer.build(width, dropout=arch.dropout, prepared=arch.prepared, lends=lends, rngs=rngs)
        setattr(self, self.place, mixer)
        setattr(self, f"{self.place}_norm", LayerNorm(width, rngs=rngs))
        feed = layer.ffn.build(width, dropout=arch.dropout, prepared=arch.prepared, rngs=rngs)
        self.feeds = feed is not None
        if feed is not None:
            self.ffn, self.ffn_norm = feed, LayerNorm(width, rngs=rngs)
        words: dict[str, Any] = {"dropout": arch.dropout, "prepared": arch.prepared, "rngs": rngs}
        self.halved, self.convolves = layer.macaron is not None, layer.convolution is not None
        if layer.macaron:
            self.macaron, self.macaron_norm = layer.macaron.build(width, **words), LayerNorm(width, rngs=rngs)
            self.last_norm = LayerNorm(width, rngs=rngs)
        if layer.convolution:
            self.convolution = layer.convolution.build(width, **words)
            self.convolution_norm = LayerNorm(width, rngs=rngs)
        if layer.shortening:  # which the model runs before the layer, for what is skipped has no shape of its own
            self.shortening = layer.shortening.build(width, rngs=rngs)
        if layer.adapter:
            self.adapter = layer.adapter.build(width, rngs=rngs)

    def __call__(self, x: Array, valid: Array | None, rngs: Keys | None, before: Any = None) -> tuple[Array, Any]:
        """Map `x: (batch, time, width)` to the same shape; take and return what mixers lend each other."""
        y, carry = self.whole(x, valid, rngs, before)
        return (
            jnp.where(self.kept[...], y, x) if hasattr(self, "kept") else y
        ), carry  # of a subnet that leaves it out

    def shortened(self, track: Track, rngs: Keys | None) -> Track:
        """Make the layer's input a shorter sequence, as the model does before it runs the layer."""
        if not isinstance(self.shortening, Merging):
            return track.then(self.shortening(track.x, track.lengths, rngs))
        mixer, norm = getattr(self, self.place), getattr(self, f"{self.place}_norm")
        keys = mixer.k(norm(track.x) if self.norm_first else track.x)
        return track.then(self.shortening(track.x, track.lengths, keys, track.sizes))

    def whole(self, x: Array, valid: Array | None, rngs: Keys | None, before: Any) -> tuple[Array, Any]:
        """Run the layer, which no subnet leaves out."""
        mixer, norm = getattr(self, self.place), getattr(self, f"{self.place}_norm")

        def mix(x: Array) -> tuple[Array, Any]:
            y, carry = mixer(x, valid, rngs, before)
            return dropout(y, self.rate, rngs), carry

        def feed(x: Array) -> Array:
            return dropout(self.ffn(x, rngs), self.rate, rngs)

        if self.norm_first:
            if self.halved:
                x = x + 0.5 * dropout(self.macaron(self.macaron_norm(x), rngs), self.rate, rngs)
            y, carry = mix(norm(x))
            x = x + y
            if self.convolves:
                x = x + dropout(self.convolution(self.convolution_norm(x), valid), self.rate, rngs)
            if self.feeds:
                y = feed(self.ffn_norm(x))
                x = x + (0.5 * y if self.halved else y)
            return self.adapted(self.last_norm(x) if self.halved else x), carry
        y, carry = mix(x)
        x = norm(x + y)
        return self.adapted(self.ffn_norm(x + feed(x)) if self.feeds else x), carry

    def stream(self, x: Array, valid: Array, memory: dict[str, Memory]) -> tuple[Array, Array, dict[str, Memory]]:
        """Run a chunk of a stream, `x: (batch, frames, width)`, of which `valid: (batch, frames)` are frames.

        Return as many frames, by the mixer's `ahead` earlier, which of them are valid, and the memory.
        """
        mixer, norm = getattr(self, self.place), getattr(self, f"{self.place}_norm")
        y, mixed = mixer.stream(norm(x) if self.norm_first else x, valid, memory["mixer"])
        (x, valid), waiting = delayed(memory["waiting"], x=x, valid=valid)
        held = {"mixer": mixed, "waiting": waiting}
        x = x + y if self.norm_first else norm(x + y)
        if self.feeds and self.norm_first:
            x = x + self.ffn(self.ffn_norm(x), None)
        elif self.feeds:
            x = self.ffn_norm(x + self.ffn(x, None))
        return self.adapted(x), valid, held

    def adapted(self, x: Array) -> Array:
        """Return the layer's output after its adapter, where it has one."""
        return x + self.adapter(x) if hasattr(self, "adapter") else x
