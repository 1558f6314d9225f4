"""Memory that is used again: never while somebody holds it, never more than its limit."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import lazytiles as lt
from lazytiles.buffers import Shelf, shelf

BYTE = np.dtype(np.uint8)
MIB = 2**20


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "float16", "float32", "complex128"])
def test_arrays_are_like_those_of_numpy(dtype):
    array = Shelf(MIB).empty((30, 40, 500), np.dtype(dtype))
    assert (array.shape, array.dtype) == ((30, 40, 500), np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert place(array) % 64 == 0 or array.nbytes > MIB
    array[...] = 1
    assert (array == 1).all()


def test_memory_comes_back_with_the_last_view():
    own = Shelf(MIB)
    array = own.empty((100, 1000), BYTE)
    first, view = place(array), array[10:, ::3].T
    del array
    assert own.nbytes == 0
    other = own.empty((100, 1000), BYTE)
    assert place(other) != first
    del view
    assert own.nbytes >= 100_000
    assert place(own.empty((1000, 100), BYTE)) == first


def test_what_waits_is_bounded_and_the_oldest_sizes_go_first():
    own = Shelf(MIB)
    arrays = [own.empty((size,), BYTE) for size in (300_000, 300_000, 200_000) for _ in range(2)]
    while arrays:
        del arrays[0]
    assert own.nbytes <= MIB
    small = own.nbytes
    again = own.empty((200_000,), BYTE)
    assert own.nbytes < small  # the last size is there
    assert own.empty((2 * MIB,), BYTE).base is None  # too large to wait at all
    del again
    assert own.nbytes == small
    own.clear()
    assert own.nbytes == 0


def test_small_and_empty_arrays_do_not_wait():
    own = Shelf(MIB)
    for shape in ((0, 5), (10,), (60_000,)):
        assert own.empty(shape, BYTE).base is None
    assert own.nbytes == 0


def test_no_two_arrays_in_use_share_memory():
    own, clashes = Shelf(8 * MIB), []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[np.ndarray] = []
        for _ in range(400):
            array = own.empty((int(rng.choice([70_000, 100_000, 300_000])),), BYTE)
            array[:] = number
            held.append(array)
            if len(held) > 5:
                gone = held.pop(int(rng.integers(len(held))))
                if not (gone == number).all():
                    clashes.append(number)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert 0 < own.nbytes <= own.limit


def test_clear_cache_gives_it_back():
    assert place(shelf.empty((100_000,), BYTE))
    assert shelf.nbytes > 0
    lt.clear_cache()
    assert shelf.nbytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_with_a_free_lock():
    own = shelf
    with own._lock:
        child = os.fork()
        if child == 0:
            worked = threading.Thread(target=lambda: own.empty((100_000,), BYTE), daemon=True)
            worked.start()
            worked.join(5)
            os._exit(int(worked.is_alive()))
    assert os.waitpid(child, 0)[1] == 0
