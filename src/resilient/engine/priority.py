"""How much a call matters, carried by the context: when there is not room for all, the least goes first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, Final, Self
from urllib.parse import unquote

from . import params

__all__ = [
    "CRITICALITIES",
    "Priority",
    "current_priority",
    "innermost_priority",
    "priority",
    "priority_of",
    "service_criticality",
]


class Priority(IntEnum):
    """How much a call matters; the lower the number, the more.

    Attributes:
        PROBE: asks whether the service lives; has slots of its own.
        CRITICAL: somebody is waiting, and it cannot be made good later.
        DEFAULT: what nobody has said anything about.
        SHEDDABLE: nobody will miss it.

    Concurrency: immutable.

    Source: B. Beyer et al., "Site Reliability Engineering", chapter 21, on criticality.
    """

    PROBE = 0
    CRITICAL = 1
    DEFAULT = 2
    SHEDDABLE = 3


_NAMES: Final = {level.name.lower(): level for level in Priority}

CRITICALITIES: Final = {
    "critical": Priority.CRITICAL,
    "high": Priority.DEFAULT,
    "medium": Priority.DEFAULT,
    "low": Priority.SHEDDABLE,
}
"""The words of `service.criticality`, which callers may use of themselves."""

innermost_priority: ContextVar[Priority] = ContextVar("resilient_priority", default=Priority.DEFAULT)
"""The priority of this context."""


def priority_of(parameter: str, value: object) -> Priority:
    """Return a priority, given itself or by name."""
    if isinstance(value, Priority):
        return value
    if not isinstance(value, str):
        names = ", ".join(map(repr, _NAMES))
        params.refuse(TypeError, parameter, f"must be a Priority or one of {names}", value)
    return _NAMES[params.one_of(parameter, value, _NAMES)]


def service_criticality(environ: Mapping[str, str] | None = None) -> Priority:
    """Return the priority of this service, as its OpenTelemetry resource tells it.

    Args:
        environ: where `OTEL_RESOURCE_ATTRIBUTES` is looked up. None: in the environment of the process.

    Returns:
        `CRITICAL` where `service.criticality` is "critical", `SHEDDABLE` where it is "low", else `DEFAULT`.

    Source: OpenTelemetry semantic conventions, service attributes.
    """
    variables = os.environ if environ is None else environ
    for attribute in variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, _, value = attribute.partition("=")
        if name.strip() == "service.criticality":
            return CRITICALITIES.get(unquote(value.strip()).lower(), Priority.DEFAULT)
    return Priority.DEFAULT


def current_priority(*_args: Any, **_kwargs: Any) -> Priority:
    """Return the priority of this context, whatever the arguments: `Bulkhead(priority=current_priority)`.

    Args:
        *_args: of a decorated call; not looked at.
        **_kwargs: the same.

    Returns:
        The priority of the innermost `priority` block around, `Priority.DEFAULT` outside of all.

    Concurrency: reads the current context only.
    """
    return innermost_priority.get()


class priority:  # noqa: N801 - a block, as `deadline` is one
    """Give everything inside a block a priority: `with priority("critical"):`, or `async with`.

    It is carried along with the context: into tasks, and into the threads that this library starts.

    Args:
        level: a `Priority` or its name in lower case.

    Raises:
        TypeError: *level* is neither.
        ValueError: *level* is no such name.

    Concurrency: sets the current context only. A block is for one `with` at a time.

    Source: B. Beyer et al., "Site Reliability Engineering", chapter 21, on criticality.
    """

    __slots__ = ("_before", "_level")

    def __init__(self, level: Priority | str) -> None:
        self._level = priority_of("level", level)
        self._before = Priority.DEFAULT

    def __enter__(self) -> Self:
        self._before = innermost_priority.get()
        innermost_priority.set(self._level)
        return self

    def __exit__(self, *_: object) -> None:
        # Set, not reset by its token: a block in an async generator may be left in another context.
        innermost_priority.set(self._before)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()
