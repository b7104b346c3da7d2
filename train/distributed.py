"""Which process of how many this is: the one place that asks the environment (set by torchrun)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

Number = TypeVar("Number", np.float32, np.float64, np.int64)


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def this_world() -> World:
    """Return what torchrun set, or a world of one."""
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES.items())
    return World(rank, size, local)


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def join(world: World, device: torch.device) -> None:
    """Connect to the other processes: NCCL between GPUs, gloo between CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.world_size > 1:
        # torchrun's store outlives a group: the next one must not find the addresses of the last.
        store, rank, size = next(iter(rendezvous("env://")))
        own = PrefixStore(f"run {next(_joined)}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=own, rank=rank, world_size=size)


_joined = count()


def leave(world: World) -> None:
    """Disconnect."""
    if world.world_size > 1:
        _hosts.cache_clear()
        distributed.destroy_process_group()


def any_rank(flag: bool, world: World) -> bool:
    """Return whether the flag is set on any process; all must ask, and all get the same answer.

    The exchange goes over gloo between the hosts, so no GPU waits for it.
    """
    if world.world_size == 1:
        return flag
    flags = torch.tensor(int(flag))
    distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=_hosts())
    return bool(flags)


def gathered(rows: npt.NDArray[Number], world: World) -> npt.NDArray[Number]:
    """Return the rows of all processes, rank after rank, given each one's own `[any number, ...]`; all must ask.

    Over gloo between the hosts.
    """
    if world.world_size == 1:
        return rows
    parts = []
    for rank in range(world.world_size):
        num_rows = torch.tensor(len(rows))
        distributed.broadcast(num_rows, rank, group=_hosts())
        part = rows if rank == world.rank else np.empty((int(num_rows), *rows.shape[1:]), rows.dtype)
        distributed.broadcast(torch.from_numpy(part), rank, group=_hosts())
        parts.append(part)
    return np.concatenate(parts)


def all_gathered(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Return the rows of all processes, on their device and without gradients; each must have as many."""
    if world.world_size == 1:
        return rows
    everyone = rows.new_empty(world.world_size * len(rows), *rows.shape[1:])
    distributed.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone


def of_main(tensors: Iterable[torch.Tensor], world: World) -> list[torch.Tensor]:
    """Return the values that rank 0 has of tensors which all have, on their devices; all must ask.

    Over gloo between the hosts.
    """
    if world.world_size == 1:
        return list(tensors)
    copies = [(tensor.device, tensor.detach().to("cpu", copy=True)) for tensor in tensors]
    for _, copy in copies:
        distributed.broadcast(copy, 0, group=_hosts())
    return [copy.to(device) for device, copy in copies]


@cache
def _hosts() -> distributed.ProcessGroup:
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo")
    return group


def replicate(module: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Return the module with gradients averaged over all processes, or itself in a world of one."""
    if world.world_size == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
