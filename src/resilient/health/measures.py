"""The metrics of health: how each check stands, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from ..engine.finding import Status
from ..engine.measure import Measure, gauge, up_down
from .report import Result

__all__ = ["of_results"]

_CHECK: Final = "resilient.health.check.name"

HEALTH_STATUS: Final = up_down(
    "resilient.health.status",
    "1",
    "The state that checks and watched policies are in: 1, the others 0.",
    _CHECK,
    "resilient.health.state",
)
CHECK_DURATION: Final = gauge(
    "resilient.health.check.duration", "s", "How long a check took the last time.", _CHECK
)
CHECK_AGE: Final = gauge("resilient.health.check.age", "s", "How old what a check found is.", _CHECK)
CHECK_VALUE: Final = gauge(
    "resilient.health.check.value",
    "",
    "The one figure that says most about what a check looks at, in the unit that is told with it.",
    _CHECK,
    "resilient.health.check.unit",
)

_STATES: Final = tuple(status.value for status in Status)


def of_results(results: Iterable[Result]) -> Iterator[Measure]:
    """Return what can be told of a service's checks."""
    for result in results:
        for state in _STATES:
            yield HEALTH_STATUS, int(result.status.value == state), (result.name, state)
        if result.took is not None:
            yield CHECK_DURATION, result.took, (result.name,)
        if result.age is not None:
            yield CHECK_AGE, result.age, (result.name,)
        if result.value is not None:
            yield CHECK_VALUE, result.value, (result.name, result.unit or "1")
