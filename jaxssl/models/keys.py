"""Random keys for parameters and for dropout, one for each that asks, in the order of asking."""

from itertools import count

import jax
from jax import Array


class Keys:
    """Keys folded from one by their number: those of `flax.nnx.Rngs`, which modules of Flax take this for.

    `nnx.Rngs` counts in an array. Under a trace every count becomes an equation of the program, and writing it back
    asks the tracer what it has not, which prints the program: that took a third of the time of tracing a model.
    """

    def __init__(self, key: Array):
        self._key, self._numbers = key, count()

    def params(self) -> Array:
        """Return the next key, for a parameter."""
        return jax.random.fold_in(self._key, next(self._numbers))

    def dropout(self) -> Array:
        """Return the next key, for dropout."""
        return self.params()


class OneKey(Keys):
    """The same key for everyone: for shapes, which no number matters to."""

    def __init__(self) -> None:
        super().__init__(jax.random.key(0))

    def params(self) -> Array:
        """Return the key."""
        return self._key
