"""Two gloo processes that each do a piece of work, for the tests of metrics that gather over ranks."""

import socket

import torch


def answers_of_two_ranks(work):
    """{rank: work(rank)}; `work` is a function of a module and is called within the process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(work, rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    answers = dict(queue.get(timeout=180) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    return answers


def _rank(work, rank, port, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    queue.put((rank, work(rank)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
