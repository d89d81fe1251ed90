"""What the tests of Retry share."""

from __future__ import annotations

from typing import Any

from resilient import (
    Retry,
)
from resilient.testing import FakeClock


class Flaky:
    """A function that raises or returns what it was given, in turn; the last one again and again."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = outcomes
        self.calls = 0

    def __call__(self) -> Any:
        outcome = self.outcomes[min(self.calls, len(self.outcomes) - 1)]
        self.calls += 1
        if isinstance(outcome, BaseException) or (
            isinstance(outcome, type) and issubclass(outcome, Exception)
        ):
            raise outcome
        return outcome


def make(clock: FakeClock, **options: Any) -> Retry:
    """Return a retry on *clock*, which never really waits."""
    return Retry(**{"on": ConnectionError, "wait": 1.0, "clock": clock, "sleep": clock.sleep, **options})
