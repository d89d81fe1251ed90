"""Alert rules for Prometheus, as data: what `resilient alerts` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Final

__all__ = ["Alert", "alerts", "rules"]

_PARTS: Final = ("slo", "service", "policies", "caches", "pools", "health")
_ALERT: Final = re.compile(
    r'- alert: (?P<name>\w+)\n.*?severity: (?P<severity>\w+)\n.*?runbook_url: "@RUNBOOKS@/(?P<page>[^"]+)"',
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert there is.

    Attributes:
        name: what it is called.
        severity: "page" where somebody has to come at once, or "ticket".
        page: where the documentation says what to do about it.
    """

    name: str
    severity: str
    page: str


def rules(objective: Decimal, runbooks: str) -> str:
    """Return all rules as one file for Prometheus.

    Args:
        objective: how many of 100 operations are to succeed in 30 days.
        runbooks: the URL of this documentation, or of one that has the same pages.
    """
    budget = (100 - objective) / 100
    text = "groups:\n" + "\n".join(part.replace("groups:\n", "", 1) for part in _parts())
    for placeholder, value in (
        ("@OBJECTIVE@", f"{objective.normalize():f}"),
        ("@BUDGET@", f"{budget.normalize():f}"),
        ("@RUNBOOKS@", runbooks.rstrip("/")),
    ):
        text = text.replace(placeholder, value)
    return text


def alerts() -> list[Alert]:
    """Return the alerts there are, as they stand in the rules."""
    return [Alert(**found.groupdict()) for part in _parts() for found in _ALERT.finditer(part)]


def _parts() -> Iterator[str]:
    for part in _PARTS:
        yield (files(__name__) / f"{part}.yaml").read_text(encoding="utf-8")
