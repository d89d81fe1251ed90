"""What health tells: one result for each check, and all of a group together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from ..engine.finding import Fact, Status

__all__ = ["Report", "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """How one check, or one policy that is watched, stands now.

    Attributes:
        name: of the check.
        kind: "check", or what is watched: "circuit_breaker", "connection_pool" and so on.
        status: as it counts: with hysteresis, grace, age and what it depends on taken into account.
        output: why, in one line for people, secrets masked; empty where there is nothing to say.
        value: the one figure that says most; None where there is none.
        unit: what *value* counts; None where nothing needs to be said.
        facts: further figures and words, by name.
        critical: whether a failure of it fails the groups it is in; and so does a failure of what it depends
            on, where that is why nobody knows how it is doing.
        external: whether it looks at something outside this process.
        groups: the groups it is in, beside that of everything.
        depends_on: the checks that this one stands on.
        behind: of these, those whose failure keeps anybody from knowing how this one is doing.
        at: when it was found; None while nothing has been.
        age: how many seconds ago that was; None while nothing has been.
        took: how many seconds the check took; None while nothing was found, and for what is watched.
        running_for: how many seconds the run that is under way has lasted, 0 while it waits to begin; None
            where there is none.
        failures_in_a_row: how often it has failed since it last passed.
        stale: whether it is too old to be believed.
    """

    name: str
    kind: str
    status: Status
    output: str = ""
    value: float | None = None
    unit: str | None = None
    facts: Mapping[str, Fact] | None = None
    critical: bool = False
    external: bool = True
    groups: frozenset[str] = frozenset()
    depends_on: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    at: datetime | None = None
    age: float | None = None
    took: float | None = None
    running_for: float | None = None
    failures_in_a_row: int = 0
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """How a service stands, or one group of its checks.

    Attributes:
        group: "live", "ready", "startup", "all", or a group of the user's.
        status: `FAIL` where a critical result fails or, but for liveness and "all", is unknown, and while the
            service drains; `WARN` where anything else is amiss; else `PASS`.
        service: the name of the service.
        version: of the service; None where it was not told.
        at: when the report was made, in UTC.
        uptime: seconds since the `Health` was made.
        results: one for each check, in the order in which they were registered.
        output: why the service is not ready, where that is not due to a check: it drains; else empty.
    """

    group: str
    status: Status
    service: str
    version: str | None
    at: datetime
    uptime: float
    results: tuple[Result, ...] = ()
    output: str = ""

    @property
    def ok(self) -> bool:
        """Whether a prober is to be told that all is well enough."""
        return self.status is not Status.FAIL

    @property
    def http_status(self) -> int:
        """The status of a response that tells this: 200, or 503 for a failure."""
        return HTTPStatus.OK if self.ok else HTTPStatus.SERVICE_UNAVAILABLE

    def result(self, name: str) -> Result:
        """Return the result of the check named *name*.

        Args:
            name: of a check in this report; of several of the name, such as a check and a breaker, the one
                that was registered first.

        Returns:
            Its result.

        Raises:
            KeyError: there is none of that name.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)
