"""How something is doing, in the words that checks and policies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, runtime_checkable

__all__ = ["Fact", "Finding", "Status", "Witness", "worst"]

Fact: TypeAlias = str | float | bool | None
"""A figure or a word that goes into a report."""

_NONE: Final[Mapping[str, Fact]] = MappingProxyType({})


class Status(StrEnum):
    """How something is doing.

    Concurrency: immutable.

    Source: draft-inadarei-api-health-check-06, which has no word for what nobody can tell.
    """

    PASS = "pass"  # noqa: S105 - no password
    """All is well."""
    WARN = "warn"
    """It does its work, and somebody should look at it."""
    FAIL = "fail"
    """It does not do its work."""
    UNKNOWN = "unknown"
    """Nobody can tell: not looked at yet, or what it stands on has failed."""


_ORDER: Final = {Status.PASS: 0, Status.UNKNOWN: 1, Status.WARN: 2, Status.FAIL: 3}


def worst(*statuses: Status) -> Status:
    """Return the worst of *statuses*; of none, that all is well."""
    return max(statuses, key=_ORDER.__getitem__, default=Status.PASS)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, or what a policy can tell from the traffic through it.

    Attributes:
        status: how it is doing.
        output: why, in one line for people; empty where there is nothing to say.
        value: the one figure that says most; None where there is none.
        unit: what *value* counts, such as "bytes", "s" or "percent"; None where nothing needs to be said.
        facts: further figures and words, by name. No secrets: they go into reports.
        calls: how many calls of real traffic have ended so far that told how what it guards is doing; None
            where it does not see that. While they become more, nobody need probe it.
    """

    status: Status
    output: str = ""
    value: float | None = None
    unit: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=lambda: _NONE)
    calls: int | None = None


@runtime_checkable
class Witness(Protocol):
    """Whatever sees real traffic and can say how it goes: each policy, each pool, what else has these two.

    Concurrency: asked from any thread.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def finding(self) -> Finding:
        """Return how what it guards is doing, from what it has seen; quickly, and without asking anybody.

        `FAIL` says that what it guards cannot be used; a report makes a warning of that, unless it was told
        that this is critical.
        """
        ...
