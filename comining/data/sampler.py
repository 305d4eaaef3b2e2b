"""Which images make up batch k: a function of (seed, k) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from comining.data.seeding import derive_seed
from comining.errors import ConfigError


class SampleKey(NamedTuple):
    """One image of the training stream."""

    position: int  # global position in the stream: seeds random choices for the image
    item: int  # of the training set


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Refuse a batch size that cannot be split evenly between processes.

    Raises:
        ConfigError: naming the option.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"data.batch_size={batch_size} counts the images of a batch over all processes and "
            f"must be a positive multiple of their number, {world_size}"
        )


class StreamSampler(Sampler[list[SampleKey]]):
    """Batches of images of one orientation, for a given range of the training stream.

    A run that starts at batch k sees what an uninterrupted run sees there, on any number of
    workers and ranks. Within a round every image occurs equally often, except fewer than
    ``batch_size`` that do not fill a batch. Images of one orientation share a batch, to reduce
    padding; the remainders of both are mixed.

    Args:
        landscape: for every image whether it is wider than high.
        batch_size: images of a batch over all ranks.
        start, stop: the batches to serve.
        rank, world_size: this process takes its contiguous share of every batch.
    """

    def __init__(
        self,
        landscape: Sequence[bool],
        batch_size: int,
        *,
        start: int,
        stop: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not len(landscape):
            raise ValueError("there is no image to train on")
        check_batch_size(batch_size, world_size)
        self.landscape = np.asarray(landscape, dtype=np.bool_)
        self.batch_size = batch_size
        self.start, self.stop = start, stop
        self.seed = seed
        self.share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        # A set smaller than a batch is repeated to fill one.
        self.passes = -(-batch_size // len(self.landscape))
        self.batches_per_round = self.passes * len(self.landscape) // batch_size

    def __len__(self) -> int:
        """Batches of the whole stream, as Lightning counts them even in a resumed run."""
        return self.stop

    def __iter__(self) -> Iterator[list[SampleKey]]:
        current = -1
        batches: list[NDArray[np.int64]] = []
        for batch in range(self.start, self.stop):
            number, within = divmod(batch, self.batches_per_round)
            if number != current:
                current, batches = number, self._round(number)
            first = batch * self.batch_size
            keys = [
                SampleKey(first + offset, int(item)) for offset, item in enumerate(batches[within])
            ]
            yield keys[self.share]

    def _round(self, number: int) -> list[NDArray[np.int64]]:
        """The batches of one round."""
        rng = np.random.default_rng(derive_seed("order", self.seed, number))
        order = np.concatenate([rng.permutation(len(self.landscape)) for _ in range(self.passes)])
        wide = self.landscape[order]
        full: list[NDArray[np.int64]] = []
        rest: list[NDArray[np.int64]] = []
        for group in (order[wide], order[~wide]):
            filled = len(group) - len(group) % self.batch_size
            full += np.split(group[:filled], range(self.batch_size, filled, self.batch_size))
            rest.append(group[filled:])
        mixed = np.concatenate(rest)
        if len(mixed) >= self.batch_size:
            full.append(mixed[: self.batch_size])
        full = [batch for batch in full if len(batch)]
        return [full[position] for position in rng.permutation(len(full))]
