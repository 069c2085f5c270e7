"""Reuse of memory, only after all views of it are gone."""

import gc

import numpy as np

from pit_jax.data.buffer_pool import BufferPool


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    pool = BufferPool()
    first = pool.array((4, 1000), np.int32)
    where = place(first)
    view = first.T[5:]
    del first
    gc.collect()
    second = pool.array((4, 1000), np.int32)
    assert place(second) != where
    del view
    gc.collect()
    assert place(pool.array((4, 1000), np.int32)) == where
    assert second.shape == (4, 1000)
    assert second.dtype == np.int32


def test_smaller_arrays_fit_and_larger_ones_get_their_own() -> None:
    pool = BufferPool()
    where = place(pool.array((100, 3), np.uint8))
    small = pool.array((7, 10), np.float32)
    assert place(small) == where
    assert small.shape == (7, 10)
    del small
    large = pool.array((1000,), np.uint8)
    large[:] = 7
    assert large.shape == (1000,)
    del large
    assert pool.array((250,), np.int32)[-1] == np.frombuffer(b"\7\7\7\7", np.int32)[0]


def test_what_is_too_large_goes_back_to_the_system() -> None:
    pool = BufferPool(largest=100)
    pool.array((101,), np.uint8)[:] = 7
    assert pool.array((101,), np.uint8).max() == 0
    pool.array((100,), np.uint8)[:] = 7
    assert pool.array((100,), np.uint8).min() == 7
