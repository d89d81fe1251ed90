"""A loop that is blocked is seen to be, from another thread, while it is."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from tests.support.waiting import wait_until

from resilient.health import Status
from resilient.health.checks import EventLoopLag
from resilient.testing import FakeClock


class Loop:
    """An event loop in a thread, which can be blocked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._gates: list[threading.Event] = []

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.close()

    def start(self) -> None:
        self._thread.start()
        self.turn()

    def turn(self) -> None:
        """Wait until the loop has done what it was given before."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(20.0)

    def block(self) -> threading.Event:
        """Block the loop until the event that is returned is set."""
        begun, gate = threading.Event(), threading.Event()
        self._gates.append(gate)

        def hold() -> None:
            begun.set()
            gate.wait(30.0)

        self.loop.call_soon_threadsafe(hold)
        assert begun.wait(20.0)
        return gate

    def close(self) -> None:
        for gate in self._gates:
            gate.set()
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(20.0)
        self.loop.close()


@pytest.fixture
def turning() -> Iterator[Loop]:
    """A loop in a thread of its own."""
    loop = Loop()
    loop.start()
    yield loop
    loop.close()


def attached(loop: Loop, clock: FakeClock, **options: float | None) -> EventLoopLag:
    """Return a check of *loop* that beats as quickly as real time lets it, but sees *clock*."""
    check = EventLoopLag(interval=0.001, clock=clock, **options)  # type: ignore[arg-type]
    check.attach(loop.loop)
    loop.turn()
    return check


class TestBlocked:
    """The loop stands, and the check says for how long."""

    def test_lag_grows_while_it_is_blocked(self, turning: Loop) -> None:
        """First a warning, then a failure: the loop need not answer for that."""
        clock = FakeClock(100.0)
        check = attached(turning, clock)
        turning.block()
        clock.advance(0.5)
        warned = check()
        clock.advance(4.5)
        failed = check()
        assert (warned.status, failed.status) == (Status.WARN, Status.FAIL)
        assert warned.value == pytest.approx(0.5, abs=0.01)
        assert failed.value == pytest.approx(5.0, abs=0.01)
        assert failed.output == "the event loop has not turned for 5 s"
        assert failed.unit == "s"

    def test_deadlock_is_found_after_thirty_seconds(self, turning: Loop) -> None:
        """As a check for liveness, which nothing shorter makes fail."""
        clock = FakeClock(100.0)
        check = attached(turning, clock, warn=None, fail=30.0)
        turning.block()
        clock.advance(29.0)
        assert check().status is Status.PASS
        clock.advance(2.0)
        assert check().status is Status.FAIL

    def test_it_recovers_with_the_loop(self, turning: Loop) -> None:
        """What is over is no failure any more, but a warning for a while."""
        clock = FakeClock(100.0)
        check = attached(turning, clock, window=1.0)
        gate = turning.block()
        clock.advance(5.0)
        assert check().status is Status.FAIL
        gate.set()
        wait_until(lambda: check().status is Status.WARN, "the loop turns again")
        finding = check()
        assert finding.value == pytest.approx(5.0, abs=0.1)
        assert finding.output == "the event loop was up to 4999 ms late in the last 1 s"
        # Slowly: a beat sees how far the clock moved since the one before.
        for _ in range(30):
            clock.advance(0.05)
            turning.turn()
            wait_until(lambda: check().facts["overdue_seconds"] == 0.0, "it has beaten")
        wait_until(lambda: check().status is Status.PASS, "the lag is forgotten")

    def test_loop_that_is_late_again_and_again_fails(self, turning: Loop) -> None:
        """The last beat counts, though none is overdue at the moment."""
        clock = FakeClock(100.0)
        check = EventLoopLag(interval=10.0, clock=clock)
        check.attach(turning.loop)
        turning.turn()
        pulse = check._pulse
        assert pulse is not None
        clock.advance(12.0)
        done = threading.Event()
        turning.loop.call_soon_threadsafe(lambda: (pulse.beat(turning.loop), done.set()))
        assert done.wait(20.0)
        finding = check()
        assert finding.status is Status.FAIL
        assert finding.facts["overdue_seconds"] == 0.0
        assert finding.value == 2.0

    def test_loop_blocked_before_the_first_beat(self, turning: Loop) -> None:
        """It counts from when it was attached."""
        clock = FakeClock(100.0)
        turning.block()
        check = EventLoopLag(clock=clock)
        check.attach(turning.loop)
        clock.advance(3.0)
        assert check().status is Status.FAIL

    def test_real_time(self, turning: Loop) -> None:
        """With real clocks, too: a loop that blocks for as long as it takes to be seen."""
        check = EventLoopLag(warn=0.02, fail=0.05, interval=0.01)
        check.attach(turning.loop)
        turning.turn()
        gate = turning.block()
        wait_until(lambda: check().status is Status.FAIL, "it is seen to be blocked")
        gate.set()
        wait_until(lambda: check().status is not Status.FAIL, "it is seen to turn again")


class TestAttaching:
    """Which loop it belongs to, and when there is none."""

    async def test_made_in_a_loop_it_belongs_to_that(self) -> None:
        """Nothing else needs to be done."""
        check = EventLoopLag(warn=30.0, fail=None)
        found = await asyncio.to_thread(check)
        assert found.status is Status.PASS

    async def test_attach_takes_the_loop_it_is_called_in(self) -> None:
        """As from the start-up of an application."""
        check = await asyncio.to_thread(lambda: EventLoopLag(warn=30.0, fail=None))
        assert check().status is Status.UNKNOWN
        check.attach()
        check.attach()
        assert (await asyncio.to_thread(check)).status is Status.PASS

    def test_without_a_loop_nothing_is_known(self) -> None:
        """And it is said what to do."""
        finding = EventLoopLag()()
        assert finding.status is Status.UNKNOWN
        assert "attach()" in finding.output

    def test_attach_without_a_loop_is_refused(self) -> None:
        """There is none here."""
        with pytest.raises(RuntimeError, match="no running event loop"):
            EventLoopLag().attach()

    def test_loop_that_does_not_run_yet(self) -> None:
        """It is not late: time passes before it runs."""
        clock = FakeClock()
        loop = asyncio.new_event_loop()
        check = EventLoopLag(clock=clock)
        check.attach(loop)
        assert "does not run" in check().output
        clock.advance(60.0)

        async def ask() -> Status:
            await asyncio.sleep(0)
            return (await asyncio.to_thread(check)).status

        assert loop.run_until_complete(ask()) is Status.PASS
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        assert check().status is Status.UNKNOWN
        assert "closed" in check().output

    def test_loop_that_is_gone(self) -> None:
        """The check does not keep it alive."""
        loop = asyncio.new_event_loop()
        check, gone = EventLoopLag(), weakref.ref(loop)
        check.attach(loop)
        loop.close()
        del loop
        gc.collect()
        assert gone() is None
        assert check().status is Status.UNKNOWN

    def test_beats_end_with_the_check(self, turning: Loop) -> None:
        """Nobody has it any more, so the loop has nothing to do for it."""
        check = EventLoopLag(interval=0.001)
        check.attach(turning.loop)
        turning.turn()
        pulse = weakref.ref(check._pulse)
        del check
        gc.collect()
        wait_until(lambda: pulse() is None, "the pulse is gone")
        wait_until(lambda: not turning.loop._scheduled, "the last beat is over")  # type: ignore[attr-defined]

    def test_another_loop_takes_over(self, turning: Loop) -> None:
        """The last one attached counts."""
        clock = FakeClock()
        check = attached(turning, clock)
        other = Loop()
        other.start()
        try:
            check.attach(other.loop)
            other.turn()
            turning.block()
            clock.advance(0.01)
            wait_until(lambda: check().facts["overdue_seconds"] == 0.0, "the other one beats")
        finally:
            other.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forked_child_has_no_loop(self, turning: Loop) -> None:
        """The parent's does not turn there, and that is no failure of the child."""
        check = attached(turning, FakeClock())
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            os._exit(0 if "attach()" in check().output else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_bad_settings_are_refused(self) -> None:
        """When it is made, by name."""
        with pytest.raises(ValueError, match="fail must be at least warn, which is 2, got 1"):
            EventLoopLag(2.0, 1.0)
        with pytest.raises(ValueError, match="interval must be greater than 0"):
            EventLoopLag(interval=0)


async def test_a_beat_costs_next_to_nothing() -> None:
    """A thousand beats take the loop a few milliseconds, so two a second nothing."""
    check = EventLoopLag(interval=3600.0)
    await asyncio.sleep(0)
    pulse, loop = check._pulse, asyncio.get_running_loop()
    assert pulse is not None
    begun = time.thread_time()
    for _ in range(1000):
        pulse.beat(loop)
    assert time.thread_time() - begun < 0.5
    for handle in loop._scheduled:  # type: ignore[attr-defined]
        handle.cancel()
