"""Ctrl-C: politely once, then at once."""

from __future__ import annotations

import os
import signal

import pytest

from awq_edge.cli.interrupt import Interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to itself")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_a_request_and_the_second_an_end() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested()
        press_ctrl_c()
        assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_before_anybody_asked_it_ends_at_once() -> None:
    with Interrupt(), pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_outside_it_is_what_it_was_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt = Interrupt()
    with interrupt:
        assert signal.getsignal(signal.SIGINT) != before
        interrupt.requested()
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) == before
    with interrupt:  # the next answer starts anew
        assert not interrupt.requested()
