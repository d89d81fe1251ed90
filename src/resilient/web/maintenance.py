"""Maintenance mode: the service is closed, by hand, for a while."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, TypeAlias

from ..engine import params
from ..engine.announcing import Announcing
from ..engine.clock import MONOTONIC
from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.living import remember
from ..engine.measure import Measure
from ..engine.window import Tally
from ..errors import MaintenanceError
from ..events import Announcer, MaintenanceSwitched
from ..policies.measures import CALLS, MAINTENANCE_ON, REJECTIONS
from ..typing import Clock, Seconds
from .addresses import NETWORK_LIKE, NetworkLike, Networks
from .paths import several_paths
from .problem import Answer, answer, problem
from .request import Request

__all__ = ["Maintenance", "MaintenanceStats"]

Allowed: TypeAlias = NetworkLike | Callable[[Request], bool]
"""Who is let in all the same: a network, or a predicate of the request."""


@dataclass(frozen=True, slots=True)
class MaintenanceStats:
    """What a maintenance switch has counted.

    Attributes:
        refused: requests that were refused.
        on: whether the service is closed now.
    """

    refused: int
    on: bool


class _Closed(NamedTuple):
    until: float | None  # on the clock; None: until somebody opens
    reason: str | None


class Maintenance(Announcing):
    """Close a service for maintenance at run time, and open it again, without restarting it.

    While it is on, requests are answered with 503: browsers get *page*, everybody else a problem document.

    Args:
        page: HTML for those who accept it: text, bytes, or the `Path` of a file, which is read at once. None:
            everybody gets the problem document.
        retry_after: seconds after which clients are asked to come back where nobody said for how long it is;
            0 or more. Clients are spread over up to half as much more, and no more than a minute.
        exempt: paths that stay open, such as "/login" or "/static/*".
        allow: who is let in all the same: networks as text or `ipaddress` objects, and predicates of a
            `Request`. Addresses are those of the clients, behind the middleware's `trusted` proxies.
        name: in errors and events.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or *page* is text without a tag.
        OSError: the file of *page* cannot be read.

    Concurrency: safe from any thread, task and signal handler; asking takes no lock.
    """

    kind: ClassVar[str] = "Maintenance"

    def __init__(
        self,
        page: str | bytes | Path | None = None,
        *,
        retry_after: Seconds = 120.0,
        exempt: Iterable[str] = (),
        allow: Iterable[Allowed] = (),
        name: str = "maintenance",
        clock: Clock = MONOTONIC,
    ) -> None:
        self._page = _html(page)
        self._retry_after = params.seconds("retry_after", retry_after)
        self._exempt = several_paths("exempt", exempt)
        if isinstance(allow, NETWORK_LIKE) or not isinstance(allow, Iterable):
            # A network can be iterated over: address by address, for hours.
            params.refuse(TypeError, "allow", "must be several, such as ['10.0.0.0/8'], not one", allow)
        admitted = list(allow)
        self._predicates = [params.plain_function("allow", one) for one in admitted if callable(one)]
        self._networks = Networks("allow", [one for one in admitted if not callable(one)])
        self._name = params.named("name", name)
        self._clock = params.callback("clock", clock)
        self._closed: _Closed | None = None
        self.announcer = Announcer()
        self._refused = Tally()
        self.after_fork()
        renew_after_fork(self)
        remember(self)

    @property
    def name(self) -> str:
        """The name, in errors and events."""
        return self._name

    @property
    def is_on(self) -> bool:
        """Whether the service is closed now."""
        return self._current() is not None

    def on(self, for_: Seconds | None = None, reason: str | None = None) -> None:
        """Close the service; if it is closed, with this end and reason from now on.

        Args:
            for_: seconds after which it opens by itself; above 0. None: not by itself.
            reason: why; it is in the event, and not told to clients.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: *for_* is out of range.
        """
        seconds = params.optional_seconds("for_", for_)
        if reason is not None:
            params.named("reason", reason)
        closed = _Closed(None if seconds is None else self._clock() + seconds, reason)
        with self._lock:
            self._closed = closed
            self.announcer.post(MaintenanceSwitched(self._name, True, seconds, reason))
        self.announcer.deliver()

    def off(self) -> None:
        """Open the service; nothing happens where it is open."""
        closed = self._current()
        if closed is not None:
            self._open(closed, None)

    def check(self, request: Request) -> None:
        """Refuse *request* if the service is closed to it.

        Args:
            request: what to decide on.

        Raises:
            MaintenanceError: the service is closed, the path is not exempt, and the client not let in.
        """
        closed = self._closed and self._current()
        if closed is None or self._exempt.find(request.path) or self._admits(request):
            return
        left = self._retry_after if closed.until is None else max(0.0, closed.until - self._clock())
        next(self._refused.ticker)
        raise MaintenanceError(f"Maintenance {self._name!r} is on", policy=self._name, retry_after=left)

    def answer(self, error: MaintenanceError, request: Request) -> Answer:
        """Return the response to a request that `check` has refused.

        Args:
            error: what `check` raised.
            request: what it was about.
        """
        vary = [("Vary", "Accept")]  # the same address has an answer for browsers and one for programs
        if self._page is None or not _prefers_html(request.header("accept")):
            return problem(error, vary)
        return answer(error, "text/html; charset=utf-8", self._page, vary)

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        stats = self.stats()
        yield CALLS, stats.refused, ("rejected",)
        yield REJECTIONS, stats.refused, ("enforced",)
        yield MAINTENANCE_ON, int(stats.on), ()

    def stats(self) -> MaintenanceStats:
        """Return what was counted so far, and the state."""
        return MaintenanceStats(self._refused.read(), self.is_on)

    def finding(self) -> Finding:
        """Return whether the service is open, for health. A warning: it is closed, for the reason given."""
        closed = self._current()
        facts = {"on": closed is not None, "refused": self._refused.read()}
        if closed is None:
            return Finding(Status.PASS, facts=facts)
        left = "" if closed.until is None else f", for another {max(0.0, closed.until - self._clock()):.3g} s"
        output = f"closed by hand ({closed.reason or 'no reason given'}){left}"
        return Finding(Status.WARN, output, facts=facts)

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self._lock = threading.RLock()  # re-entrant, for signal handlers
        self.announcer.after_fork()

    def __repr__(self) -> str:
        closed = self._current()
        if closed is None:
            return f"<Maintenance {self._name!r} off>"
        left = "" if closed.until is None else f", {closed.until - self._clock():.3g} s left"
        return f"<Maintenance {self._name!r} on{left}>"

    def _admits(self, request: Request) -> bool:
        return request.client in self._networks or any(admits(request) for admits in self._predicates)

    def _current(self) -> _Closed | None:
        """Return how it is closed; open it if its time is up."""
        closed = self._closed
        if closed is not None and closed.until is not None and self._clock() >= closed.until:
            self._open(closed, "its time is up")
            return self._closed
        return closed

    def _open(self, closed: _Closed, reason: str | None) -> None:
        with self._lock:
            if self._closed is not closed:  # somebody was quicker, or has closed it anew meanwhile
                return
            self._closed = None
            self.announcer.post(MaintenanceSwitched(self._name, False, None, reason))
        self.announcer.deliver()


def _html(page: str | bytes | Path | None) -> bytes | None:
    if isinstance(page, Path):
        return page.read_bytes()
    if isinstance(page, str):
        if "<" not in page:  # the name of a file, most likely, which browsers would be shown
            params.refuse(ValueError, "page", "must be HTML; give the file that it is in as a Path", page)
        return page.encode()
    if page is not None and not isinstance(page, bytes):
        params.refuse(TypeError, "page", "must be HTML as text or bytes, a Path, or None", page)
    return page


# A media range and its weight (RFC 9110, 12.5.1); other parameters do not matter here.
_RANGE: Final = re.compile(r"^\s*([\w*+.-]+/[\w*+.-]+)(?:[^,]*?;\s*[qQ]=([01](?:\.\d{0,3})?))?", re.ASCII)
_HTML: Final = ("text/html", "application/xhtml+xml")
_JSON: Final = ("application/problem+json", "application/json")


def _prefers_html(accept: str | None) -> bool:
    """Tell whether a client asks for HTML by name, as browsers do, and not for JSON rather than that."""
    weights: dict[str, float] = {}
    for one in (accept or "")[:2_000].split(","):
        if media := _RANGE.match(one):
            weights[media[1].lower()] = float(media[2] or 1)
    html, json = (max(weights.get(name, 0.0) for name in names) for names in (_HTML, _JSON))
    return html > 0 and html >= json
