"""Two processes that train or measure together, as a launcher would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch


def two_at_a_port() -> dict[str, str]:
    """What a launcher sets in both of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def rank_of(rank: int) -> dict[str, str]:
    """What it sets in one of them."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def in_two_processes(work: Callable[..., None], *arguments: object) -> None:
    """Call `work(rank, *arguments)` in two new processes, which are ranks of a world of two; both must end well."""
    environment = two_at_a_port()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_work, args=(rank, environment, work, arguments)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
        one.kill()
    assert [one.exitcode for one in processes] == [0, 0]


def _work(rank: int, environment: dict[str, str], work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment | rank_of(rank))
    work(rank, *arguments)
