"""Two gloo processes that each do a piece of work, for the tests of what ranks share.

They are forked, as a new interpreter would import for seconds; and not from the process of the tests, as the threads
of the evaluator's pool do not come along, so that it would wait for them for ever. A nursery is forked before the
first test: it has imported everything and computed nothing.
"""

import multiprocessing
import socket

import torch

FORK = multiprocessing.get_context("fork")


class Nursery:
    """A process that makes pairs of ranks."""

    def __init__(self):
        self._here, there = FORK.Pipe()
        self._process = FORK.Process(target=self._serve, args=(there,))
        self._process.start()
        there.close()

    def answers_of_two_ranks(self, work):
        """{rank: work(rank)}; `work` is a function of a module, or a partial of one."""
        self._here.send(work)
        assert self._here.poll(180), "no answer of the ranks"
        answers, codes = self._here.recv()
        assert codes == [0, 0], answers
        return answers

    def close(self):
        self._here.close()
        self._process.join(60)

    def _serve(self, there):
        self._here.close()
        while True:
            try:
                work = there.recv()
            except EOFError:
                return
            there.send(_answers(work))


def _answers(work):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = FORK.Queue()
    ranks = [FORK.Process(target=_rank, args=(work, rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    answers = dict(queue.get(timeout=150) for _ in ranks)
    for process in ranks:
        process.join(timeout=20)
    return answers, [process.exitcode for process in ranks]


def _rank(work, rank, port, queue):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        queue.put((rank, work(rank)))
    except BaseException as error:  # told at once, where the other rank would be waited for
        queue.put((rank, repr(error)))
        raise
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
