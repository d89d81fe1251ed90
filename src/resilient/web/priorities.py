"""How much a request matters: what clients say of it, whom to believe, and what to tell the next service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from ..engine import params
from ..engine.priority import CRITICALITIES, Priority, current_priority, priority_of
from .addresses import Trusted, proxies_of
from .keys import field_name
from .request import Request

__all__ = ["PriorityKey", "priority_function", "priority_headers", "requested_priority"]

PriorityKey: TypeAlias = Callable[[Request], Priority | str | None]
"""Tells the priority of a request, itself or by name; None leaves it as it is."""

_HEADER: Final = "x-request-priority"
_WORDS: Final = CRITICALITIES | {level.name.lower(): level for level in Priority}


def requested_priority(
    header: str = _HEADER, *, highest: Priority | str = Priority.CRITICAL, trusted: Trusted | None = None
) -> PriorityKey:
    """Take the priority of a request from a header field, as far as its sender is to be believed.

    The field holds the name of a `Priority`, or one of the words of OpenTelemetry's `service.criticality`:
    critical, high, medium, low; in any case of letters. Anything else is as if it were not there.

    Whoever is not trusted may say "sheddable" or "low" of a request, and nothing that would put it before
    others.

    Args:
        header: the name of the field.
        highest: the most that the trusted may ask for, a `Priority` or its name. Probes are known by their
            path, and nobody should be able to pass other requests off as such.
        trusted: whom to believe, where they are others than the middleware's. None: the middleware's.

    Returns:
        A function for `priority=` of the middlewares.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    name = field_name("header", header)
    ceiling = priority_of("highest", highest)
    own = None if trusted is None else proxies_of(trusted)

    def by_header(request: Request) -> Priority | None:
        value = request.header(name)
        asked = None if value is None else _WORDS.get(value.strip().lower())
        if asked is None:
            return None
        proxies = request.proxies if own is None else own
        if proxies.believe(request.peer):
            return max(asked, ceiling)  # the greater number is the lower priority
        return asked if asked is Priority.SHEDDABLE else None

    return by_header


_MAKERS: Final[tuple[object, ...]] = (requested_priority,)


def priority_function(parameter: str, priority: PriorityKey) -> PriorityKey:
    """Return *priority* if it can tell the priority of a request; what only makes such a function cannot.

    Args:
        parameter: the name of the argument; for error messages.
        priority: what was given for it.

    Raises:
        TypeError: *priority* is none.
    """
    if priority in _MAKERS:
        params.refuse(TypeError, parameter, "must be a function: write requested_priority(...)", priority)
    return params.plain_function(parameter, priority)


def priority_headers(header: str = _HEADER) -> dict[str, str]:
    """Return what tells a service called from here how much the call matters.

    Args:
        header: the name of the field, as that service knows it.

    Returns:
        One header field with the name of the context's priority; nothing where that is the default.

    Raises:
        TypeError: *header* is not text.
        ValueError: *header* is not the name of a header field.

    Concurrency: reads the current context only.
    """
    name = field_name("header", header)
    level = current_priority()
    return {} if level is Priority.DEFAULT else {name: level.name.lower()}
