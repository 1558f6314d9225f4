"""Orders, draws and shards: pure functions of their seeds, the same on every machine and for ever.

Orders are sorted raw words (see `lazytiles.indexing.seeds`); nothing depends on the distribution code of NumPy, whose
streams may change.  ``docs/understand/orders.md`` has the definitions in full.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lazytiles.aliases import Int64s
from lazytiles.indexing.keys import select_rows
from lazytiles.indexing.seeds import stable_argsort, stream

_LOG_2 = 0.6931471805599453
_CHUNK = 2**18  # elements worked on at once: temporaries stay in the processor's cache


def permutation(
    n: int,
    seed: int,
    *,
    epoch: int | None = None,
    groups: ArrayLike | None = None,
    window: int | None = None,
    purpose: str = "order",
) -> Int64s:
    """The order of n samples that belongs to (seed, epoch): the stable argsort of n raw words.

    With a window the groups are ordered first, in the same manner, and then the samples within each run of
    `window` consecutive groups; a window of all groups is the same as none.

    Parameters
    ----------
    n : number of samples
    seed : any whole number
    epoch : number of the pass, or None for the order that does not change
    groups : array, shape (n,); the source of each sample.  Only which samples share one, and the order of
        their values, matters
    window : how many groups are mixed at a time, at least 1; needs `groups`
    purpose : keeps orders for different uses apart

    Returns
    -------
    int64 array, shape (n,), a permutation of ``0..n-1``

    Raises
    ------
    ValueError : a window below 1 or without groups, groups of another length

    >>> permutation(6, 42)
    array([1, 5, 3, 4, 0, 2])
    >>> permutation(6, 42, groups=[0, 1, 2, 0, 1, 2], window=1)
    array([5, 2, 1, 4, 3, 0])
    """
    random = stream(purpose, seed, epoch)
    if window is None:
        return stable_argsort(random.random_raw(n))
    if groups is None or operator.index(window) < 1:
        raise ValueError(f"window={window} mixes that many groups at a time: it needs groups and at least 1")
    ranks = ranks_of(groups)
    if len(ranks) != n:
        raise ValueError(f"there are groups for {len(ranks)} samples, but {n} samples")
    count = int(ranks.max()) + 1 if n else 0
    place = np.empty(count, dtype=np.int64)
    place[stable_argsort(stream(purpose + ".groups", seed, epoch).random_raw(count))] = np.arange(count)
    windows = (place // window).astype(np.min_scalar_type(count // window))[ranks]
    del ranks
    order = stable_argsort(random.random_raw(n))
    by_window = np.argsort(windows[order], kind="stable").astype(np.int64, copy=False)
    for start in range(0, n, _CHUNK):  # in place: a third array of ten million is not needed
        by_window[start : start + _CHUNK] = order[by_window[start : start + _CHUNK]]
    return by_window


def draw(
    n: int,
    k: int,
    seed: int,
    *,
    epoch: int | None = None,
    weights: ArrayLike | None = None,
    replacement: bool = False,
) -> Int64s:
    """k of n samples, drawn with or without replacement, with equal or given probabilities.

    With replacement each draw looks up one raw word in the cumulated weights.  Without it the order is that
    of the variates ``-log(u) / weight`` (Efraimidis and Spirakis, Information Processing Letters 97, 2006):
    the next sample is always drawn in proportion to the weights of those that are left.

    Parameters
    ----------
    n, k : number of samples, and how many to draw; without replacement at most n
    seed, epoch : as in `permutation`
    weights : array, shape (n,), relative probabilities, finite and not negative; None for equal ones
    replacement : whether a sample can be drawn twice

    Returns
    -------
    int64 array, shape (k,), values in ``0..n-1``

    Raises
    ------
    ValueError : more samples than there are, weights of another length, negative, not finite or all zero,
        or zero weights without replacement

    >>> draw(5, 8, 1, replacement=True)
    array([1, 0, 0, 3, 1, 1, 0, 0])
    >>> draw(3, 3, 1, weights=[1, 1000, 1])
    array([1, 2, 0])
    """
    relative = None if weights is None else _checked_weights(weights, n, replacement=replacement)
    if (k > n and not replacement) or (k > 0 and n == 0):
        raise ValueError(f"cannot draw {k} of {n} samples {'with' if replacement else 'without'} replacement")
    if not replacement:
        if relative is None:
            return permutation(n, seed, epoch=epoch)[:k]
        words, variates = stream("draw", seed, epoch).random_raw(n), np.empty(n)
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            variates[part] = _minus_log(words[part])
        with np.errstate(over="ignore"):
            variates /= relative
        return np.argsort(variates, kind="stable").astype(np.int64, copy=False)[:k]
    words = stream("draw.replacement", seed, epoch).random_raw(k)
    if relative is not None:
        edges = np.cumsum(relative)
        uniform = (words >> np.uint64(11)) * 2.0**-53
        places = np.searchsorted(edges, uniform * edges[-1], side="right").astype(np.int64, copy=False)
        return np.asarray(np.minimum(places, np.flatnonzero(relative)[-1]), dtype=np.int64)
    if n >= 2**32:
        raise ValueError(f"drawing with replacement from {n} samples is not possible: at most {2**32 - 1}")
    half, size = np.uint64(32), np.uint64(n)  # word * n / 2**64, rounded down, exactly
    high, low = words >> half, words & np.uint64(2**32 - 1)
    return np.asarray((high * size + (low * size >> half)) >> half, dtype=np.int64)


def balanced_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Weights that make every class equally likely: one over the number of samples of the label's class.

    Parameters
    ----------
    labels : array, shape (n,) of classes or (n, k) whose distinct rows are the classes

    Returns
    -------
    float64 array, shape (n,)

    Raises
    ------
    ValueError : labels that are no classes: every sample has one of its own (three samples or more), or they are
        fractions most of which stand alone

    >>> balanced_weights(["a", "a", "b", "a"]).round(2)
    array([0.33, 0.33, 1.  , 0.33])
    """
    ranks = ranks_of(labels)
    counts = np.bincount(ranks)
    values = np.asarray(labels)
    are_fractions = values.dtype.kind == "f" and bool((values != np.floor(values)).any())
    if len(ranks) > 2 and (len(counts) == len(ranks) or (are_fractions and 2 * len(counts) > len(ranks))):
        raise ValueError(
            f"balanced weights are for classes that samples share, but {len(ranks)} labels have {len(counts)} "
            "different values, as targets of a regression do; make classes of them first, such as "
            "balanced_weights(numpy.digitize(labels, edges)), or pass one number a sample"
        )
    return 1.0 / counts[ranks]


def ranks_of(groups: ArrayLike) -> Int64s:
    """Which group each sample is in, int64 (n,), the groups being numbered 0, 1, 2, ... in the order of their values.

    The groups are numbers or text, shape (n,), or (n, k) whose distinct rows are the groups.

    >>> ranks_of(["b", "a", "b"])
    array([1, 0, 1])
    """
    values = np.asarray(groups)
    if values.dtype == object:
        values = values.astype(str)
    if values.ndim == 1 and values.dtype.kind in "iu" and len(values):
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high <= 4 * len(values):  # counting is many times faster than sorting
            small = values.astype(np.int64, copy=False)
            return np.asarray((np.cumsum(np.bincount(small) > 0) - 1)[small], dtype=np.int64)
    axis = 0 if values.ndim > 1 else None
    return np.asarray(np.unique(values, return_inverse=True, axis=axis)[1].reshape(-1), dtype=np.int64)


def shard_slice(batch: int, batch_size: int, shard: tuple[int, int] = (0, 1)) -> slice:
    """The rows of the global order that one shard reads for its i-th batch.

    With ``G = batch_size * count``, shard ``(index, count)`` takes rows
    ``[i*G + index*batch_size, i*G + (index + 1)*batch_size)``: the union over the shards is the global batch.

    >>> shard_slice(2, 32, (1, 4))
    slice(288, 320, None)
    """
    index, count = shard
    start = (batch * count + index) * batch_size
    return slice(start, start + batch_size)


def shard_batches(n: int, batch_size: int, shard: tuple[int, int] = (0, 1), *, drop_last: bool = False) -> int:
    """How many batches each shard has in a pass over n rows; several shards leave an incomplete batch out.

    A ValueError says that a batch size is below 1, or a shard not ``(index, count)`` with ``0 <= index < count``.

    >>> shard_batches(100, 32), shard_batches(100, 32, drop_last=True), shard_batches(100, 32, (0, 2))
    (4, 3, 1)
    """
    if type(batch_size) is bool or batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        index, count = 0, 0
    if not 0 <= index < count:
        raise ValueError(f"shard={shard!r} must be (index, count) with 0 <= index < count")
    total = batch_size * count
    return n // total if drop_last or count > 1 else -(-n // total)


@dataclass(frozen=True, slots=True)
class Mixing:
    """How well an order mixes groups; see `mixing`.

    Attributes
    ----------
    distinct : mean number of different groups in a batch
    expected : what `distinct` would be on average for a full shuffle
    correlation : of neighbours: 0 for a full shuffle, 1 where every sample follows one of its own group
    """

    distinct: float
    expected: float
    correlation: float

    def __str__(self) -> str:
        return (
            f"{self.distinct:.2f} groups in a batch ({self.expected:.2f} in a full shuffle), "
            f"correlation of neighbours {self.correlation:.3f}"
        )


def mixing(order: ArrayLike | None, groups: ArrayLike, batch_size: int = 32) -> Mixing:
    """Measure how well an order mixes the groups of its samples, such as their regions.

    Parameters
    ----------
    order : int array, shape (k,), values in ``0..n-1``; None if `groups` stands in the order already
    groups : array, shape (n,); the group of each sample by its number, not by its place in the order
    batch_size : samples; a last incomplete batch is left out

    Returns
    -------
    Mixing
        The correlation is ``(s - p) / (1 - p)`` with s the share of neighbours in one group and p what s is
        on average for a full shuffle.

    >>> groups = np.repeat(np.arange(100), 50)
    >>> print(mixing(np.arange(5000), groups))
    1.60 groups in a batch (27.57 in a full shuffle), correlation of neighbours 0.980
    >>> mixing(permutation(5000, 0), groups).distinct > 27
    True
    """
    sequence = ranks_of(groups)
    if order is not None:
        sequence = sequence[select_rows(order, len(sequence))]
    n = len(sequence)
    if n == 0:
        return Mixing(0.0, 0.0, 0.0)
    size = min(batch_size, n)
    batches = np.sort(sequence[: n // size * size].reshape(-1, size), axis=1)
    distinct = 1 + np.count_nonzero(np.diff(batches, axis=1)) / len(batches)
    counts = np.bincount(sequence)
    same = np.count_nonzero(sequence[1:] == sequence[:-1]) / max(n - 1, 1)
    chance = float((counts * (counts - 1.0)).sum() / max(n * (n - 1.0), 1.0))
    correlation = (same - chance) / (1 - chance) if chance < 1 else 0.0
    # The mean number of groups among `size` samples: 1 - C(n - c, size) / C(n, size) for a group of c.
    sizes, often = np.unique(counts[counts > 0], return_counts=True)
    missed = np.ones(len(sizes))
    for drawn in range(size):
        missed *= np.maximum(n - sizes - drawn, 0) / (n - drawn)
    return Mixing(float(distinct), float(((1 - missed) * often).sum()), float(correlation))


def _checked_weights(weights: ArrayLike, n: int, *, replacement: bool) -> NDArray[np.float64]:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,):
        raise ValueError(f"weights have the shape {values.shape}; there are {n} samples, so it must be ({n},)")
    if not np.isfinite(values).all() or (values < 0).any():
        place = int(np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[0])
        raise ValueError(f"weights must be finite and not negative; sample {place} has {values[place]}")
    zeros = int(np.count_nonzero(values == 0))
    if zeros and not replacement:
        raise ValueError(
            f"{zeros} of {n} weights are zero: without replacement such samples can never be drawn; "
            "leave them out (select), or pass replacement=True"
        )
    if n and zeros == n:
        raise ValueError("all weights are zero: nothing can be drawn")
    return values


def _minus_log(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """``-log(u)`` of ``u = (word // 2**12 + 1/2) / 2**52``, by additions, products and quotients alone.

    The logarithms of different machines differ in their last bit, and an order must not.
    """
    mantissa, exponent = np.frexp(((words >> np.uint64(12)) + 0.5) * 2.0**-52)
    s = (mantissa - 1) / (mantissa + 1)  # mantissa in [1/2, 1): log = 2 artanh(s), |s| <= 1/3
    square = s * s
    series = np.zeros_like(s)
    for power in range(35, 0, -2):
        series = series * square + 1.0 / power
    return np.asarray(exponent * -_LOG_2 - 2.0 * s * series, dtype=np.float64)
