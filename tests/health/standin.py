"""What stands for a `Health` in the tests of the handlers: it reports what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from resilient.health import Report, Result, Status

AT = datetime(2026, 1, 31, 12, 30, 15, 250_000, tzinfo=UTC)
GROUPS = ("live", "ready", "startup", "all", "storage")


def result(name: str = "postgres", status: Status = Status.PASS, **more: Any) -> Result:
    """Return the result of a check that was made a moment ago."""
    found = dict(kind="check", at=AT, age=0.5, took=0.0125, critical=True)
    return Result(name, status=status, **{**found, **more})


class StandIn:
    """Report *status* and *results* for every group, or raise *error*."""

    def __init__(
        self,
        status: Status = Status.PASS,
        results: Iterable[Result] = (),
        *,
        output: str = "",
        details: Any = "never",
        error: BaseException | None = None,
    ) -> None:
        self.details = details
        self.groups = frozenset(GROUPS)
        self.status = status
        self.results = tuple(results)
        self.output = output
        self.error = error
        self.asked: list[str] = []
        self.knew: list[str] = []
        self.drained: list[str] = []
        self.started: list[asyncio.AbstractEventLoop] = []

    @property
    def names(self) -> frozenset[str]:
        return frozenset(result.name for result in self.results)

    def report(self, group: str = "all") -> Report:
        self.asked.append(group)
        if self.error is not None:
            raise self.error
        results = self.results if group == "all" else self.results[:1]
        drains = self.output and group not in {"live", "startup"}
        status = Status.FAIL if drains else self.status
        return Report(group, status, "checkout", "1.4.2", AT, 60.0, results, self.output if drains else "")

    def latest(self, group: str = "all") -> Report:
        self.knew.append(group)
        return self.report(group)

    async def areport(self, group: str = "all") -> Report:
        return self.report(group)

    def start(self) -> None:
        self.started.append(asyncio.get_running_loop())
        if self.error is not None:
            raise self.error

    def drain(self, reason: str = "") -> None:
        self.drained.append(reason)
        self.output = f"draining: {reason}"
