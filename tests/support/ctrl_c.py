"""Ctrl-C ends the tests also where the command that a test runs in this process has answered it with its exit code."""

import os
import signal
import socket

import pytest


class Interrupts:
    """Counts the SIGINTs that arrive, whoever handles them, and those that the tests have sent themselves."""

    def __init__(self):
        self._own = 0
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def watch(self):
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for module, name in ((os, "kill"), (os, "killpg"), (signal, "pthread_kill")):
            setattr(module, name, self._counting(getattr(module, name)))

    def by_a_person(self):
        """Whether one more has arrived than was sent; then all are forgotten."""
        try:
            arrived = self._reader.recv(4096).count(signal.SIGINT)
        except BlockingIOError:
            arrived = 0
        own, self._own = self._own, 0
        return arrived > own

    def _counting(self, send):
        def sent(target, number):
            self._own += number == signal.SIGINT
            return send(target, number)

        return sent


_interrupts = Interrupts()


def pytest_sessionstart():
    _interrupts.watch()


def pytest_runtest_teardown():
    if _interrupts.by_a_person():
        pytest.exit("Ctrl-C", returncode=2)
