"""Batches for training and validation, as pure functions of integers.

Batch `step` of epoch `epoch` depends on (seed, epoch, step) and the corpus, not on what was read before, nor on threads
or hosts; so a run resumes by remembering integers, and two hosts read the two halves of what one would. grain reads
ahead in threads: reading files and NumPy's larger operations release the interpreter lock.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from compress.errors import InputError
from jaxssl.data.buckets import Plan, padding
from jaxssl.data.masking import Spans
from jaxssl.data.recipe import Batch, Corpus, Recipe, Shard

__all__ = ["Batch", "Corpus", "Loader", "Validation", "validation"]

ORDER, TRAINING, VALIDATION = 1, 2, 3  # streams of random numbers that never meet


class Loader(Iterator[Batch]):
    """Training batches without end, epoch after epoch, read ahead by threads.

    Each epoch shuffles utterances among those of similar length, then batches; fewer than `batch_size` utterances are
    dropped, others each time. Close it (it is a context manager) to stop the threads; an exception, Ctrl-C among them,
    closes it too, and iterating on starts again at the batch that was not handed out.

    Args:
        corpus: the utterances.
        batch_size: global, over all hosts.
        crop: see `Recipe`, as are the others.
        spans: how to mask.
        seed: 0 or more.
        host: which of the hosts this is; each gets its contiguous share of the same global batches.
        hosts: how many there are.
        buckets: padded lengths at most.
        waste: share of padding aimed at.
        shortest: utterances with fewer inputs are left out.
        among: the utterances to use.
        threads: that read; 0: none, read when asked.
        ahead: batches kept ready, at least.

    Raises:
        InputError: settings that do not fit each other, or fewer utterances than a batch takes.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        crop: int | None,
        spans: Spans,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        buckets: int = 8,
        waste: float = 0.1,
        shortest: int = 1,
        among: Sequence[int] | np.ndarray | None = None,
        threads: int = 2,
        ahead: int = 4,
    ):
        recipe = Recipe(
            corpus,
            batch_size=batch_size,
            crop=crop,
            spans=spans,
            seed=seed,
            shard=Shard(host, hosts),
            buckets=buckets,
            waste=waste,
            shortest=shortest,
            among=among,
        )
        self._source = _Training(recipe)
        self._reading = _Reading(threads, ahead)
        self._position = 0
        self._batches: Any = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._reading.start(self._source, self._position)
        try:
            batch = next(self._batches)
        except BaseException:  # the batch being waited for would be lost, and those after it come one too early
            self.close()
            raise
        self._position += 1
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> int:
        """Batches in an epoch; every epoch has as many."""
        return self._source.steps

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """List the shapes of `inputs` that will come, on this host: what a run compiles."""
        return self._source.recipe.shapes(self._source.plan(0))

    def summary(self) -> str:
        """Say in one line what an epoch holds and how many shapes it compiles."""
        recipe, shapes = self._source.recipe, self.shapes()
        return (
            f"{len(recipe.chosen)} utterances, {recipe.too_short} more too short; an epoch is {self.steps} batches of "
            f"{recipe.batch_size} in {len(shapes)} shapes ({' '.join(str(shape[1]) for shape in shapes)}), "
            f"{padding(recipe.lengths, recipe.edges):.0%} padding"
        )

    def batch(self, epoch: int, step: int) -> Batch:
        """Read one batch, wherever the loader stands."""
        return self._source[epoch * self.steps + step]

    def state(self) -> dict[str, int]:
        """Return the position of the next batch, and what must agree for it to mean the same, as JSON integers."""
        epoch, step = divmod(self._position, self.steps)
        return {"epoch": epoch, "step": step, **self._source.recipe.identity()}

    def restore(self, state: dict[str, int]) -> None:
        """Go to a position that `state` returned, on any number of hosts.

        Raises:
            InputError: the seed, the batch size or the corpus is another, or it is none.
        """
        if not isinstance(state, dict) or any(type(state.get(name)) is not int for name in ("epoch", "step")):
            raise InputError("the data position was saved without its epoch or step; start anew")
        for name, value in self._source.recipe.identity().items():
            if state.get(name) != value:
                raise InputError(
                    f"the data position was saved with {name} {state.get(name)}, now it is {value}; resume with the "
                    "same seed, batch size, corpus, crop and buckets, or start anew"
                )
        self.close()
        self._position = state["epoch"] * self.steps + state["step"]

    def close(self) -> None:
        """Stop reading ahead; the position stays."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class Validation(Sequence[Batch]):
    """Each utterance once, sorted by length, always with the same crops and masks; the last batch is filled up.

    Crops and masks depend on the seed and the utterance only, so neither batch size nor hosts change what is measured.
    Iterating reads ahead.
    """

    def __init__(self, recipe: Recipe, reading: "_Reading"):
        self._recipe, self._reading = recipe, reading
        self._plan = recipe.plan(rng=None, fill=True)

    def __len__(self) -> int:
        return len(self._plan.rows)

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < len(self):
            raise IndexError(step)
        return self._recipe.batch(self._plan, step, stream=(VALIDATION, 0))

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._reading.start(self, 0)) as batches:
            yield from batches

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """List the shapes of `inputs` that will come, on this host."""
        return self._recipe.shapes(self._plan)


def validation(
    corpus: Corpus,
    *,
    batch_size: int,
    spans: Spans,
    crop: int | None = None,
    seed: int = 0,
    host: int = 0,
    hosts: int = 1,
    buckets: int = 4,
    waste: float = 0.1,
    shortest: int = 1,
    among: Sequence[int] | np.ndarray | None = None,
    threads: int = 2,
    ahead: int = 4,
) -> Validation:
    """Return batches that hold each utterance once; arguments as for `Loader`."""
    recipe = Recipe(
        corpus,
        batch_size=batch_size,
        crop=crop,
        spans=spans,
        seed=seed,
        shard=Shard(host, hosts),
        buckets=buckets,
        waste=waste,
        shortest=shortest,
        among=among,
    )
    return Validation(recipe, _Reading(threads, ahead))


@dataclass(frozen=True)
class _Reading:
    """How grain reads ahead."""

    threads: int
    ahead: int

    def __post_init__(self) -> None:
        if self.threads < 0 or self.ahead < 0:
            raise InputError(f"{self.threads} threads and {self.ahead} batches ahead; give 0 or more of each")

    def start(self, source: "Sequence[Batch] | _Training", position: int) -> Any:
        """Iterate over a source from a position on."""
        ahead = max(self.ahead, self.threads) if self.threads else 0
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
        return iter(grain.MapDataset.source(source).slice(slice(position, None)).to_iter_dataset(options))


class _Training:
    """All epochs' batches, one after the other, by number."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.plan = lru_cache(maxsize=2)(self._plan)  # threads cross from one epoch into the next
        self.steps = len(self.plan(0).rows)
        if not self.steps:
            raise InputError(
                f"{len(recipe.chosen)} utterances make no batch of {recipe.batch_size}; add speech or take fewer"
            )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        epoch, step = divmod(number, self.steps)
        return self.recipe.batch(self.plan(epoch), step, stream=(TRAINING, epoch))

    def _plan(self, epoch: int) -> Plan:
        return self.recipe.plan(rng=np.random.default_rng((self.recipe.seed, ORDER, epoch)), fill=False)
