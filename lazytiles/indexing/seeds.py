"""Streams of random words that belong to tuples of seeds, the same on every machine and for ever.

The words are those of Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
keyed by a hash of the tuple (purpose, seed, ...): never by a sum, never from a state that was left behind.
"""

from __future__ import annotations

import json
import operator
import secrets
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazytiles.aliases import Int64s

Seed: TypeAlias = int | np.random.Generator | np.random.RandomState | None

_CHUNK = 2**18  # elements worked on at once: temporaries stay in the processor's cache


def seed_of(seed: Seed) -> int:
    """The whole number, of any size, that a seed stands for.

    Of a NumPy `Generator` or `RandomState` a number below 2**32 is drawn, once; None draws a fresh one, of the system's
    randomness; anything else, such as 0.5, is a TypeError.

    >>> seed_of(42), seed_of(np.random.default_rng(0)) == seed_of(np.random.default_rng(0))
    (42, True)
    """
    if seed is None:
        return secrets.randbits(32)
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**32))
    if isinstance(seed, np.random.RandomState):
        return int(seed.randint(2**32, dtype=np.uint64))
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(
            "seed is a whole number, a NumPy Generator or RandomState, or None for a fresh one; "
            f"not {seed!r}, a {type(seed).__name__}"
        ) from None


def stream(purpose: str, *words: int | str | None) -> np.random.Philox:
    """The stream of raw words that belongs to a tuple: Philox4x64-10 keyed by its hash.

    The key is the 16-byte BLAKE2b digest, as a little-endian number, of the tuple written as compact JSON.

    Parameters
    ----------
    purpose : what the words are for; streams of different purposes have nothing in common
    words : the rest of the tuple: whole numbers of any size, text, None

    Raises
    ------
    TypeError : a word is none of these (a seed such as 0.5)

    >>> stream("order", 42, None).random_raw(2)
    array([17340431168228919102,   542606150732877071], dtype=uint64)
    """
    plain = [word if word is None or isinstance(word, str) else operator.index(word) for word in words]
    text = json.dumps([purpose, *plain], separators=(",", ":"))
    return np.random.Philox(key=int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little"))


def generator(seed: int, *words: int | str | None) -> np.random.Generator:
    """A NumPy generator for one place of one run, such as ``generator(seed, epoch, place)``.

    >>> first, again = generator(7, 0, 12), generator(7, 0, 12)
    >>> bool(first.integers(1000) == again.integers(1000))
    True
    """
    return np.random.Generator(stream("generator", seed, *words))


class BatchGenerator(np.random.Generator):
    """The generator of a batch, which has in `samples` a generator for each of its samples.

    Parameters
    ----------
    seed, epoch : int
    first : place of the batch's first sample in the order of the epoch, over all shards
    size : samples of the batch

    Attributes
    ----------
    samples : the generators of the samples, that of place p belonging to (seed, epoch, p): whatever the size of
        batches and the number of shards, a sample has the same one. Made when first asked for; each goes on where it
        was left

    Notes
    -----
    Its own numbers belong to (seed, epoch, first): batches of other sizes, and other shards, draw others.

    >>> whole, part = BatchGenerator(7, 0, 0, 4), BatchGenerator(7, 0, 2, 2)
    >>> bool(whole.samples[2].random() == part.samples[0].random())
    True
    """

    def __init__(self, seed: int, epoch: int, first: int, size: int) -> None:
        super().__init__(stream("batch", seed, epoch, first))
        self._key = (seed, epoch, first, size)

    @cached_property
    def samples(self) -> tuple[np.random.Generator, ...]:
        """The generators of the samples, in the order of the batch."""
        seed, epoch, first, size = self._key
        places = range(first, first + size)
        return tuple(generator(seed, epoch, place) for place in places)


def samples_of(rng: np.random.Generator, n: int) -> Sequence[np.random.Generator]:
    """The generator of each of n samples: its own where `rng` is that of their batch, else `rng` for all in turn."""
    own = rng.samples if isinstance(rng, BatchGenerator) else ()
    return own if len(own) == n else [rng] * n


def stable_argsort(words: NDArray[np.uint64]) -> Int64s:
    """The stable argsort of words: a fast unstable one, its ties (there are hardly any) put right.

    >>> stable_argsort(np.array([7, 3, 7, 0], dtype=np.uint64))
    array([3, 1, 0, 2])
    """
    order = np.argsort(words).astype(np.int64, copy=False)
    ties = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(order) - 1, _CHUNK):
        values = words[order[start : start + _CHUNK + 1]]
        ties.append(start + np.flatnonzero(values[1:] == values[:-1]))
    tied = np.unique(np.concatenate([*ties, *(tie + 1 for tie in ties)]))
    if len(tied):
        chosen = np.sort(order[tied])
        order[tied] = chosen[np.argsort(words[chosen], kind="stable")]
    return order
