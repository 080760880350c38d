"""Ctrl-C and SIGTERM: they end what waits, and leave no lock behind."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from fedloom.deploy.carrier.aside import Aside, aside
from fedloom.deploy.interrupts import Condition, held, stoppable
from fedloom.simulation.stopping import stopping

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def is_free(condition: Condition) -> bool:
    """Whether another thread can have it."""
    got = []

    def take():
        got.append(condition.acquire(timeout=5))
        condition.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return got == [True]


@BOTH
def test_a_signal_waits_while_a_condition_is_held(number):
    changed, there = Condition(), []

    def go():
        with stoppable():
            with changed, held():
                signal.raise_signal(number)
                there.append("still in the block")
            there.append("after it")

    with pytest.raises(KeyboardInterrupt):
        go()
    assert there == ["still in the block"]
    assert is_free(changed)


@BOTH
def test_a_signal_comes_when_a_condition_waits(number):
    changed, timer = Condition(), threading.Timer(0.1, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(KeyboardInterrupt), stoppable(), changed:
        changed.wait_for(lambda: False, 60)
    timer.join()
    assert is_free(changed)


def test_a_condition_in_the_main_thread_is_still_a_condition():
    changed, told = Condition(), []

    def tell():
        with changed:
            told.append(1)
            changed.notify_all()

    with changed:
        assert not changed.wait(0.01)
        threading.Timer(0.3, tell).start()
        assert changed.wait_for(lambda: told, 60)
        threading.Timer(0.01, tell).start()
        assert changed.wait()


def test_what_is_notified_between_two_slices_is_noticed():
    changed, told, over = Condition(), [], threading.Event()

    def busy():
        while not over.is_set():
            with changed:  # so long that slices end meanwhile
                time.sleep(0.25)
                told.append(1)
                changed.notify_all()

    thread, began = threading.Thread(target=busy), time.monotonic()
    thread.start()
    with changed:
        assert changed.wait_for(lambda: told, 30)
    over.set()
    thread.join()
    assert time.monotonic() - began < 15


def test_a_signal_at_any_step_leaves_no_lock_taken():
    changed, ends = Condition(), time.monotonic() + 1.0
    with stoppable():
        while time.monotonic() < ends:
            timer = threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGTERM))
            try:
                timer.start()
                while True:
                    with changed:
                        changed.notify_all()
            except KeyboardInterrupt:
                timer.join()
            assert is_free(changed)


def test_outside_of_a_block_signals_are_what_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_a_round_at_once_and_not_in_a_held_block(capsys):
    there = []

    def go():
        with stoppable(), stopping() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked()
            with held():
                signal.raise_signal(signal.SIGINT)
                there.append("still in the block")
            there.append("after it")

    with pytest.raises(KeyboardInterrupt):
        go()
    assert there == ["still in the block"]
    assert "press Ctrl-C again" in capsys.readouterr().err


class Slow:
    """A channel that keeps a lock while it waits, and would keep it for good if it were interrupted."""

    def __init__(self):
        self.lock, self.closed, self.left = threading.Lock(), threading.Event(), []

    def next_task(self, wait):
        self.lock.acquire()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # the signal is here
        self.lock.release()
        self.closed.wait(wait)

    def leave(self, reason):
        with self.lock:
            self.left.append(reason)

    def close(self):
        self.closed.set()


def test_a_call_that_waits_is_interrupted_and_the_goodbye_goes_through():
    made, began = Slow(), time.monotonic()
    channel = Aside(made)
    with stoppable():
        with pytest.raises(KeyboardInterrupt):
            channel.next_task(60.0)
        channel.leave("it was stopped")
        channel.close()
    assert made.left == ["it was stopped"]
    assert time.monotonic() - began < 30
    assert made.closed.is_set()


def test_a_call_aside_returns_and_raises_what_it_should():
    assert aside(lambda: 7) == 7
    assert aside(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 / 0)
    found = []
    thread = threading.Thread(target=lambda: found.append(aside(threading.current_thread)))
    thread.start()
    thread.join()
    assert found == [thread]  # only the main thread hears of signals
