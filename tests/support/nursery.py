"""Processes that each do a piece of work, alone or as ranks of gloo.

They are forked, as a new interpreter would import for seconds; and not from the process of the tests, as the threads
of the evaluator's pool do not come along, so that it would wait for them for ever. The nursery is forked before the
first test: it has imported everything and computed nothing.
"""

import functools
import multiprocessing
import socket

import torch

FORK = multiprocessing.get_context("fork")


class Nursery:
    """A process that forks others. What it is given are functions of modules, or partials of such."""

    def __init__(self):
        self._here, there = FORK.Pipe()
        self._process = FORK.Process(target=self._serve, args=(there,))
        self._process.start()
        there.close()

    def answers(self, works):
        """What each of the works returns, called at the same time, each in a process of its own."""
        self._here.send(works)
        assert self._here.poll(180), "no answer of the processes"
        answers, codes = self._here.recv()
        assert codes == [0] * len(works), answers
        return answers

    def answers_of_two_ranks(self, work):
        """{rank: work(rank)}, called within a process group."""
        return dict(enumerate(self.answers_of_ranks(work, 2)))

    def answers_of_ranks(self, work, world):
        """[work(rank)] of so many ranks, called within a process group."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self.answers([functools.partial(_rank, work, n, world, port) for n in range(world)])

    def close(self):
        self._here.close()
        self._process.join(60)

    def _serve(self, there):
        self._here.close()
        while True:
            try:
                works = there.recv()
            except EOFError:
                return
            there.send(_answers(works))


def _answers(works):
    queue = FORK.Queue()
    processes = [FORK.Process(target=_answer, args=(queue, *numbered)) for numbered in enumerate(works)]
    for process in processes:
        process.start()
    answers = dict(queue.get(timeout=150) for _ in works)
    for process in processes:
        process.join(timeout=20)
    return [answers[number] for number in range(len(works))], [process.exitcode for process in processes]


def _answer(queue, number, work):
    try:
        queue.put((number, work()))
    except BaseException as error:  # told at once, where the others would be waited for
        queue.put((number, repr(error)))
        raise


def _rank(work, rank, world, port):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    answer = work(rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return answer
