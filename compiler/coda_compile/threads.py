"""Compute in one thread what becomes part of a bundle: sums round as their order has it, which threads divide."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


@contextmanager
def one_thread() -> Iterator[None]:
    """A block in which torch computes in one thread, however many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def map_in_threads(compute: Callable[[_Given], _Made], batches: Iterable[_Given]) -> list[_Made]:
    """What torch makes of each of several batches: each in one thread, as many at once as it would have used."""
    threads = torch.get_num_threads()
    with one_thread(), ThreadPoolExecutor(threads) as pool:  # threads begin with the number that is set now
        return list(pool.map(torch.inference_mode()(compute), batches))
