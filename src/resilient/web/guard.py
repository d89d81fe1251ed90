"""What the two middlewares are made of alike: an app, and the door before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, TypeVar

from ..engine import params
from ..health.serving.handler import Endpoints, Reporter, without_drain_delay
from ..typing import Seconds
from .addresses import Trusted
from .door import PROBES, Door, Gate, RateLimit
from .headers import Dialect
from .keys import Key
from .maintenance import Maintenance
from .priorities import PriorityKey

__all__ = ["Guard"]

A = TypeVar("A", bound=Callable[..., Any])


class Guard(Generic[A]):
    """An app and its door. The arguments are documented where users find them: at the middlewares.

    Attributes:
        app: what is guarded.
    """

    _in_tasks: ClassVar[bool]
    """Whether requests run in tasks."""

    def __init__(
        self,
        app: A,
        *,
        rate_limit: RateLimit | None = None,
        key: Key | None = None,
        shed: Gate | None = None,
        priority: PriorityKey | None = None,
        deadline: Seconds | None = None,
        maintenance: Maintenance | None = None,
        exempt: Iterable[str] = PROBES,
        headers: Dialect = "ietf",
        trusted: Trusted = (),
        health: Reporter | Endpoints | None = None,
    ) -> None:
        params.callback("app", app)
        self.app: A = app
        self._door = Door(
            in_tasks=self._in_tasks,
            rate_limit=rate_limit,
            key=key,
            shed=shed,
            priority=priority,
            deadline=deadline,
            maintenance=maintenance,
            exempt=exempt,
            headers=headers,
            trusted=trusted,
            health=health,
        )
        if self._door.health is not None and not self._in_tasks:
            without_drain_delay(self._door.health)
