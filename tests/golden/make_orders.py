"""Writes orders.json and streams.json, in plain Python from the definitions in docs/understand/orders.md.

Nothing here uses lazytiles or NumPy, so the files pin the definition and not the code.  Run it only to add
cases: an order that has been published never changes.
"""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from pathlib import Path

MASK = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Four words of Philox4x64-10 (Salmon et al. 2011)."""
    x = [counter >> 64 * k & MASK for k in range(4)]
    low, high = key & MASK, key >> 64
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [second >> 64 ^ x[1] ^ low, second & MASK, first >> 64 ^ x[3] ^ high, first & MASK]
        low, high = low + 0x9E3779B97F4A7C15 & MASK, high + 0xBB67AE8584CAA73B & MASK
    return x


def words(n: int, *key: int | str | None) -> list[int]:
    """The first n words of the stream of a tuple."""
    text = json.dumps(key, separators=(",", ":"))
    number = int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")
    return [word for block in range(1, n // 4 + 2) for word in philox(block, number)][:n]


def ordered(values: list) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


def permutation(n: int, seed: int, epoch: int | None = None, groups=None, window=None) -> list[int]:
    values = words(n, "order", seed, epoch)
    if window is None:
        return ordered(values)
    names = sorted(set(groups))
    place = {names[g]: k for k, g in enumerate(ordered(words(len(names), "order.groups", seed, epoch)))}
    return ordered([(place[groups[i]] // window, values[i]) for i in range(n)])


def minus_log(word: int) -> float:
    mantissa, exponent = math.frexp(((word >> 12) + 0.5) * 2.0**-52)
    s = (mantissa - 1) / (mantissa + 1)
    series = 0.0
    for power in range(35, 0, -2):
        series = series * (s * s) + 1.0 / power
    return exponent * -0.6931471805599453 - 2.0 * s * series


def draw(n: int, k: int, seed: int, epoch: int | None = None, weights=None, replacement=False) -> list[int]:
    if not replacement:
        if weights is None:
            return permutation(n, seed, epoch)[:k]
        values = [minus_log(w) / weight for w, weight in zip(words(n, "draw", seed, epoch), weights, strict=True)]
        return ordered(values)[:k]
    drawn = words(k, "draw.replacement", seed, epoch)
    if weights is None:
        return [word * n >> 64 for word in drawn]
    edges, total = [], 0.0
    for weight in weights:
        total += weight
        edges.append(total)
    last = max(i for i in range(n) if weights[i] > 0)
    return [min(sum(edge <= (word >> 11) * 2.0**-53 * total for edge in edges), last) for word in drawn]


def cases() -> list[dict]:
    """The arguments of every order in the file, by the names that lazytiles.indexing.orders uses."""
    groups = [i * 7 % 12 for i in range(50)]
    weights = [1.0 + i % 7 * 0.3 for i in range(40)]
    return [
        *({"n": n, "seed": seed} for n in (0, 1, 2, 10, 100) for seed in (0, 1234)),
        {"n": 60, "seed": -1},
        {"n": 60, "seed": 2**80 + 1},
        *({"n": 60, "seed": 42, "epoch": epoch} for epoch in (0, 1, 2)),
        {"n": 60, "seed": 43, "epoch": 0},
        *({"n": 50, "seed": 42, "groups": groups, "window": window} for window in (1, 3, 12)),
        {"n": 50, "seed": 42, "epoch": 5, "groups": groups, "window": 2},
        {"n": 40, "k": 10, "seed": 7},
        {"n": 40, "k": 60, "seed": 7, "replacement": True},
        {"n": 40, "k": 40, "seed": 7, "weights": weights},
        {"n": 40, "k": 40, "seed": 7, "epoch": 3, "weights": weights},
        {"n": 40, "k": 60, "seed": 7, "weights": [0.0, *weights[2:], 0.0], "replacement": True},
        {"n": 3, "k": 30, "seed": 7, "weights": [0.0, 5.0, 0.0], "replacement": True},
    ]


def uniform(n: int, *key: int | str | None) -> list[float]:
    """The first n numbers in [0, 1) of the generator of a tuple, as NumPy's `Generator.random` gives them."""
    return [(word >> 11) * 2.0**-53 for word in words(n, *key)]


def stream(n: int, seed: int, epoch: int) -> dict:
    """What a shuffled flow over n images under ``Augment(flip=(0.5, 0.5))`` gives in one epoch, in its order.

    Of the twelve numbers that an image takes, the ninth decides whether it is upside down and the tenth whether left
    and right change places.
    """
    drawn = [uniform(12, "generator", seed, epoch, place) for place in range(n)]
    return {
        "n": n,
        "seed": seed,
        "epoch": epoch,
        "order": permutation(n, seed, epoch),
        "flips": [[u[8] < 0.5, u[9] < 0.5] for u in drawn],
        "first": [u[0] for u in drawn],
        "batches_of_4": [uniform(1, "batch", seed, epoch, place)[0] for place in range(0, n, 4)],
    }


def main() -> None:
    streams = [stream(61, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (42, 0), (2**70, 3))]
    lines = ",\n".join(json.dumps(case) for case in streams)
    Path(__file__).with_name("streams.json").write_text(f"[\n{lines}\n]\n")
    golden = [{**case, "order": (draw if "k" in case else permutation)(**case)} for case in cases()]
    lines = ",\n".join(json.dumps(case) for case in golden)
    Path(__file__).with_name("orders.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
