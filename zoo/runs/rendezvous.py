"""How the processes that torchrun started find each other, also when it starts them again.

torchrun's store outlives the processes (torch 2.14, `torch/distributed/rendezvous.py`): what those before have
written there, addresses of gloo or the id of NCCL, is read by whoever comes first after a restart, who then calls
processes that are gone (pytorch/pytorch#135712). The number of restarts does not tell the attempts apart, as each
machine counts its own. So the ranks agree on a part of the store that nobody has written into.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

_POLL_SECONDS = 0.05


def connect(backend: str, minutes: float) -> None:
    """Makes the process group of the processes that torchrun started.

    Args:
        backend: gloo or nccl.
        minutes: longest wait for another process, now and later.

    Raises:
        torch.distributed.DistError: one did not come.
    """
    timeout = datetime.timedelta(minutes=minutes)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=fresh_part(store, rank, world, timeout), rank=rank, world_size=world, timeout=timeout
    )


def fresh_part(store: Store, rank: int, world: int, timeout: datetime.timedelta) -> Store:
    """The part of `store` that rank zero has just named, to every rank that has just asked for it."""
    if rank:
        question = uuid.uuid4().hex  # an answer to it is of this attempt
        store.set(f"zoo/question/{rank}", question)
        store.wait([f"zoo/answer/{question}"], timeout)
        name = store.get(f"zoo/answer/{question}").decode()
        store.set(f"zoo/heard/{name}/{rank}", "")
    else:
        name = uuid.uuid4().hex
        _answer_all(store, name, world, timeout)
    return PrefixStore(name, store)


def _answer_all(store: Store, name: str, world: int, timeout: datetime.timedelta) -> None:
    missing, until = set(range(1, world)), time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in sorted(missing):
            if store.check(
                [f"zoo/question/{rank}"]
            ):  # perhaps that of a process which is gone: it hears nothing
                question = store.get(f"zoo/question/{rank}").decode()
                store.set(f"zoo/answer/{question}", name)
            if store.check([f"zoo/heard/{name}/{rank}"]):
                missing.remove(rank)
        if time.monotonic() > until:
            raise dist.DistStoreError(
                f"{len(missing)} of {world} processes did not come within {timeout.total_seconds():g} s"
            )
        time.sleep(_POLL_SECONDS)
