"""The retry budget: how many retries it grants, against a naive model and in a simulated outage."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import threading
import weakref
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilient import Retry, RetryBudget
from resilient.engine.window import Tally
from resilient.testing import FakeClock, capture_events


class Owner:
    """Whatever counts calls."""

    def __init__(self, budget: RetryBudget) -> None:
        self.tally = Tally()
        budget.enrol(self, self.tally)

    def call(self, times: int = 1) -> None:
        for _ in range(times):
            next(self.tally.ticker)


class Stretch(NamedTuple):
    """So many calls, spread evenly over a stretch of time (a moment, where it begins when it ends)."""

    begin: float
    end: float
    calls: int

    def since(self, moment: float) -> float:
        if self.end <= self.begin:
            return self.calls if self.end > moment else 0.0
        return self.calls * max(0.0, self.end - max(self.begin, moment)) / (self.end - self.begin)


class BudgetMachine(RuleBasedStateMachine):
    """Calls, looks and refunds in any order, beside a model that keeps every moment.

    What is granted never exceeds the promise over the whole window, and what is refused would have exceeded
    it if the window were a tenth of it longer for retries and shorter for calls.
    """

    @initialize(
        ratio=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
        least=st.sampled_from([0.0, 0.1, 0.5]),
        window=st.sampled_from([1.0, 10.0, 60.0]),
    )
    def begin(self, ratio: float, least: float, window: float) -> None:
        self.clock = FakeClock()
        self.budget = RetryBudget(ratio, least, window, clock=self.clock)
        self.owners = [Owner(self.budget)]
        self.window = window
        self.ratio = ratio
        self.minimum = least * window
        self.looked = 0.0
        self.unseen = 0
        self.stretches: list[Stretch] = []
        self.granted: list[tuple[float, int]] = []
        self.denied = 0

    @rule(count=st.integers(1, 60), who=st.integers(0, 10))
    def call(self, count: int, who: int) -> None:
        self.owners[who % len(self.owners)].call(count)
        self.unseen += count

    @rule()
    def policy_appears(self) -> None:
        self.owners.append(Owner(self.budget))

    @rule(who=st.integers(0, 10))
    def policy_is_collected(self, who: int) -> None:
        if len(self.owners) > 1:
            del self.owners[who % len(self.owners)]

    @rule(share=st.floats(0.0, 2.5))
    def time_passes(self, share: float) -> None:
        self.clock.advance(share * self.window)

    @rule(share=st.floats(0.0, 0.15))
    def a_little_time_passes(self, share: float) -> None:
        self.clock.advance(share * self.window)

    @rule()
    def retry(self) -> None:
        self._look()
        mark = self.budget.withdraw()
        if mark:
            self.granted.append((self.clock(), mark))
            assert self._granted_within(1.0) <= self._allowed(1.0) + 1e-6
        else:
            self.denied += 1
            assert self._granted_within(1.1 + 1e-9) + 1 > self._allowed(0.9 - 1e-9) - 1e-6

    @rule(which=st.integers(0, 100))
    def give_back(self, which: int) -> None:
        if self.granted:
            _, mark = self.granted.pop(which % len(self.granted))
            self.budget.refund(mark)

    @invariant()
    def figures_add_up(self) -> None:
        if hasattr(self, "budget"):
            self._look()
            stats = self.budget.stats()
            assert stats.denied == self.denied
            assert self._granted_within(1.0) <= stats.retries <= self._granted_within(1.1 + 1e-9)
            assert stats.calls <= self._calls_within(1.0) + 1e-6
            assert stats.calls >= self._calls_within(0.9 - 1e-9) - 1e-6

    def _look(self) -> None:
        now = self.clock()
        self.stretches.append(Stretch(self.looked, now, self.unseen))
        self.looked, self.unseen = now, 0

    def _calls_within(self, windows: float) -> float:
        begin = self.clock() - windows * self.window
        return sum(stretch.since(begin) for stretch in self.stretches)

    def _granted_within(self, windows: float) -> int:
        begin = self.clock() - windows * self.window
        return sum(1 for moment, _ in self.granted if moment > begin)

    def _allowed(self, windows: float) -> float:
        return self.ratio * self._calls_within(windows) + self.minimum


TestAgainstModel = BudgetMachine.TestCase
TestAgainstModel.settings = settings(deadline=None, max_examples=80, stateful_step_count=40)


def outage(budget: RetryBudget | None, clock: FakeClock, *, calls_per_second: int, seconds: int) -> float:
    """Return the attempts per call while every call fails."""
    made: list[int] = []
    retry = Retry(on=ConnectionError, attempts=4, wait=0, budget=budget, clock=clock, sleep=clock.sleep)

    @retry
    def fail() -> None:
        made.append(1)
        raise ConnectionError("down")

    for _ in range(calls_per_second * seconds):
        with contextlib.suppress(ConnectionError):
            fail()
        clock.advance(1 / calls_per_second)
    return len(made) / (calls_per_second * seconds)


def test_outage_is_amplified_by_the_ratio_and_the_minimum_only():
    """A dead dependency sees 1.2 attempts a call, plus the minimum; without a budget it sees four."""
    clock = FakeClock()
    budget = RetryBudget(0.2, 1.0, 10.0, clock=clock)
    amplification = outage(budget, clock, calls_per_second=100, seconds=60)
    assert amplification <= 1.2 + 1.0 / 100 + 0.01
    assert amplification >= 1.15
    assert outage(None, FakeClock(), calls_per_second=100, seconds=1) == 4.0


def test_minimum_is_granted_whatever_the_traffic():
    """A client that hardly calls may still retry: 10 a second over 10 s by default."""
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    assert budget.stats().balance == 100.0
    assert sum(bool(budget.withdraw()) for _ in range(150)) == 100
    assert budget.stats() == type(budget.stats())(calls=0.0, retries=100, balance=0.0, denied=50)


def test_retry_is_remembered_for_a_whole_window():
    """A burst late in one part of the window is not forgotten before its window is over."""
    clock = FakeClock()
    budget = RetryBudget(0.0, 1.0, 10.0, clock=clock)
    clock.advance(0.99)
    assert sum(bool(budget.withdraw()) for _ in range(20)) == 10
    clock.advance(9.9)  # 10.89: within 10 s of the burst
    assert not budget.withdraw()
    clock.advance(1.2)
    assert budget.withdraw()


def test_refund_gives_back_exactly_that_retry():
    """A refund makes room at once; one for a retry that has left the window makes none."""
    clock = FakeClock()
    budget = RetryBudget(0.0, 0.2, 10.0, clock=clock)
    early = budget.withdraw()
    clock.advance(20.0)
    assert budget.withdraw()
    late = budget.withdraw()
    budget.refund(early)
    assert not budget.withdraw()
    budget.refund(late)
    assert budget.stats().retries == 1
    assert budget.withdraw()


def test_retry_is_withdrawn_before_its_back_off():
    """While a call waits for its next attempt, its retry is gone from the budget already."""
    clock = FakeClock()
    budget = RetryBudget(0.0, 1.0, 10.0, clock=clock)
    seen: list[int] = []

    def sleep(seconds: float) -> None:
        seen.append(budget.stats().retries)

    retry = Retry(on=OSError, wait=1, budget=budget, clock=clock, sleep=sleep)
    with pytest.raises(OSError, match="down"):
        retry.call(_fail)
    assert seen == [1, 2]


def _fail() -> None:
    raise OSError("down")


def test_interrupt_during_back_off_refunds():
    """A retry whose back-off is interrupted was never sent: it is given back."""
    clock = FakeClock()
    budget = RetryBudget(0.0, 1.0, 10.0, clock=clock)

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    retry = Retry(on=OSError, wait=1, budget=budget, clock=clock, sleep=sleep)
    with pytest.raises(KeyboardInterrupt):
        retry.call(_fail)
    assert budget.stats().retries == 0
    assert retry.stats().retries == 0


def test_spent_budget_raises_the_failure_at_once():
    """Without a budget left there is no wait: the failure itself is raised, and an event tells why."""
    clock = FakeClock()
    budget = RetryBudget(0.0, 0.1, 10.0, name="rates-budget", clock=clock)
    retry = Retry(on=OSError, attempts=5, wait=3, budget=budget, clock=clock, sleep=clock.sleep, name="rates")
    with capture_events() as seen, pytest.raises(OSError, match="down") as caught:
        retry.call(_fail)
    assert clock.sleeps == [3.0]
    assert [type(event).__name__ for event in seen] == [
        "RetryScheduled",
        "BudgetExhausted",
        "RetriesExhausted",
    ]
    assert (seen[1].policy, seen[1].budget) == ("rates", "rates-budget")
    assert "the retry budget 'rates-budget' is spent" in caught.value.__notes__[0]
    assert (retry.stats().retries, retry.stats().over_budget, retry.stats().exhausted) == (1, 1, 1)


def test_budget_is_shared_by_several_policies():
    """The calls of all count, and so do the retries of all."""
    clock = FakeClock()
    budget = RetryBudget(0.5, 0.0, 10.0, clock=clock)
    first, second = (
        Retry(on=OSError, wait=0, budget=budget, clock=clock, sleep=clock.sleep) for _ in range(2)
    )
    for _ in range(10):
        first.call(int)
    clock.advance(1.0)
    with pytest.raises(OSError, match="down"):
        second.call(_fail)
    assert budget.stats().calls == pytest.approx(11)
    assert budget.stats().retries == second.stats().retries == 2
    assert first.budget is second.budget is budget


def test_calls_made_before_enrolling_do_not_count():
    """Only what a policy calls under this budget is a call of this budget."""
    clock = FakeClock()
    budget, tally = RetryBudget(clock=clock), Tally()
    next(tally.ticker)
    budget.enrol(test_calls_made_before_enrolling_do_not_count, tally)
    next(tally.ticker)
    assert budget.stats().calls == 1.0


def test_policies_that_are_gone_are_let_go_and_their_calls_kept():
    """A budget keeps no policy alive, holds nothing of those that are gone, and still knows their calls."""
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    for _ in range(50):
        retry = Retry(on=OSError, budget=budget, clock=clock)
        retry.call(int)
        gone = weakref.ref(retry)
        del retry
        gc.collect()
        assert gone() is None
    assert len(budget._tallies) <= 1
    assert budget.stats().calls == 50.0
    assert budget._tallies == []


def test_own_budget_is_each_policys_own():
    """By default no two policies share a budget, and the budget goes by the policy's clock."""
    clock = FakeClock()
    first, second = Retry(on=OSError, clock=clock, name="a"), Retry(on=OSError, clock=clock, name="b")
    assert first.budget is not second.budget
    assert (first.budget.name, first.budget.ratio, first.budget.window) == ("a-budget", 0.2, 10.0)
    assert Retry(on=OSError, budget=None).budget is None


def test_standing_clock_and_a_clock_that_goes_back():
    """Calls at one moment count at that moment; a clock that jumps back stands still instead."""
    now = [100.0]
    budget = RetryBudget(1.0, 0.0, 10.0, clock=lambda: now[0])
    owner = Owner(budget)
    owner.call(3)
    assert budget.stats().calls == 3.0
    now[0] = 50.0
    owner.call(2)
    assert budget.stats().calls == 5.0
    assert sum(bool(budget.withdraw()) for _ in range(9)) == 5


def test_repr_shows_the_balance():
    """`repr` shows the name and the retries that could be made now."""
    assert repr(RetryBudget(name="rates", clock=FakeClock())) == "<RetryBudget 'rates' 100.0 retries left>"


def test_threads_are_never_granted_more_than_there_is():
    """Eight threads that withdraw at once, and give some back, share exactly what there is."""
    budget = RetryBudget(0.0, 10.0, 10.0, clock=FakeClock())
    marks: list[int] = []
    refunds: list[int] = []
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        barrier.wait()
        for _ in range(50):
            if mark := budget.withdraw():
                (refunds if dice.random() < 0.2 else marks).append(mark)
                if refunds and dice.random() < 0.2:
                    with contextlib.suppress(IndexError):
                        budget.refund(refunds.pop())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(marks) + len(refunds) == 100 == budget.stats().retries


def test_finalizer_in_the_middle_of_a_look_cannot_block():
    """A refund takes no lock: a finalizer may give back while another thread holds the budget."""
    budget = RetryBudget(clock=FakeClock())
    mark = budget.withdraw()
    done = threading.Thread(target=budget.refund, args=(mark,))
    with budget._lock:
        done.start()
        done.join(5.0)
        assert not done.is_alive()
    assert budget.stats().retries == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_frees_the_locks():
    """A child process can retry although a thread of its parent held the locks."""
    budget = RetryBudget()
    retry = Retry(on=OSError, wait=0, budget=budget)
    with budget._lock, retry.lock:
        child = os.fork()
        if child == 0:
            answers: list[Any] = []
            worker = threading.Thread(
                target=lambda: answers.append((budget.stats(), retry.stats())), daemon=True
            )
            worker.start()
            worker.join(5.0)
            os._exit(0 if answers else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"ratio": -0.1}, ValueError, "ratio must be at least 0, got -0.1"),
        ({"ratio": math.nan}, ValueError, "ratio must be a number that is finite, got nan"),
        ({"ratio": math.inf}, ValueError, "ratio must be a number that is finite, got inf"),
        ({"ratio": True}, TypeError, "ratio must be a number, got True"),
        ({"ratio": "0.2"}, TypeError, "ratio must be a number, got '0.2'"),
        ({"min_per_second": -1}, ValueError, "min_per_second must be at least 0, got -1"),
        ({"min_per_second": None}, TypeError, "min_per_second must be a number, got None"),
        ({"window": 0}, ValueError, "window must be greater than 0, got 0"),
        (
            {"window": math.inf},
            ValueError,
            "window must be a number of seconds or a timedelta that is finite",
        ),
        ({"window": "10"}, TypeError, "window must be a number of seconds or a timedelta, got '10'"),
        ({"name": ""}, ValueError, "name must not be empty, got ''"),
        ({"name": 5}, TypeError, "name must be text, got 5"),
        ({"clock": 0}, TypeError, "clock must be callable, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    """Each message names the parameter, the rule and the value."""
    with pytest.raises(kind) as caught:
        RetryBudget(**arguments)
    assert message in str(caught.value)


def test_edges_are_accepted():
    """0 leaves only the other part; a window may be a `timedelta`."""
    assert RetryBudget(0, 0, timedelta(seconds=5)).window == 5.0
    assert not RetryBudget(0, 0).withdraw()
