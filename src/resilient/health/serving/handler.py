"""What is asked for and what is answered: paths, methods and who may see what. Nothing here does any I/O."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypedDict

from ...engine import params
from ...engine.finding import Status, worst
from ...engine.waiting import running_loop
from ...typing import Seconds
from ..report import Report
from .asked import Answer, Asked
from .details import Details, details_of, shows
from .forms import Form, View, chosen

__all__ = [
    "PATHS",
    "EndpointWords",
    "Endpoints",
    "Place",
    "Reporter",
    "endpoints_of",
    "place_below",
    "without_drain_delay",
]

_log = logging.getLogger("resilient")

PATHS: Final[Mapping[str, str]] = {
    "live": "/livez",
    "ready": "/readyz",
    "startup": "/startupz",
    "all": "/health",
}
"""Where each group is found. Balancers and orchestrators are configured for these: they never change."""

_ALL: Final = "all"
_METHODS: Final = ("GET", "HEAD")
_PLAIN: Final = "text/plain; charset=utf-8"

PathsOf: TypeAlias = Mapping[str, str | Iterable[str] | None]
"""The path, or paths, of groups; None where one has none."""


class Reporter(Protocol):
    """What the handlers need of a `Health`."""

    @property
    def details(self) -> Details:
        """Who is shown more than the status."""
        ...

    @property
    def groups(self) -> Collection[str]:
        """The names of the groups."""
        ...

    @property
    def names(self) -> Collection[str]:
        """The names of the checks, and of what is watched."""
        ...

    def report(self, group: str = "all") -> Report:
        """Report on a group, in a thread."""
        ...

    def areport(self, group: str = "all") -> Awaitable[Report]:
        """Report on a group, in a task."""
        ...

    def latest(self, group: str = "all") -> Report:
        """Report what is known of a group, at once."""
        ...

    def start(self) -> None:
        """Begin with what runs in the background, and take the loop of this thread for coroutine checks."""
        ...

    def drain(self, reason: str = "") -> None:
        """Have readiness fail from now on."""


class EndpointWords(TypedDict, total=False):
    """The arguments of `Endpoints`, where they are passed through; they are documented there."""

    paths: PathsOf | None
    prefix: str
    aliases: Mapping[str, str] | None
    details: Details | None
    retry_after: Seconds | None
    drain_delay: Seconds | None


class Place(NamedTuple):
    """What a path leads to.

    Attributes:
        name: of a group.
        free: whether the client has chosen the name: then it may be that of a check, too.
    """

    name: str
    free: bool = False


class _Inquiry(NamedTuple):
    group: str
    check: str | None
    form: Form
    view: View


class Endpoints:
    """Say where the health of a service is asked for, and who is told how much.

    `/livez`, `/readyz`, `/startupz` and `/health` tell the groups "live", "ready", "startup" and "all";
    `/health/<name>` any other group or a check, for those who may see details. The answer is 200 for pass and
    warn, and 503 for fail; below `/health`, 404 for a name that is none, or goes on to the app that is
    behind. A group of yours that *paths* or *aliases* name may be asked for by everybody.

    Args:
        health: the `Health` that is reported.
        paths: other paths, by group: one, several, or None for none. Groups that are not named here keep
            theirs. None: all of them do.
        prefix: what all paths begin with, such as "/v1"; empty: nothing.
        aliases: further paths and the groups they tell, such as `{"/healthz": "live"}`. None: there are none.
        details: who is shown more than the status; see `Health`. None: as the `Health` says.
        retry_after: seconds after which to ask again, told with a failure; 0 or more, and not told while the
            service drains, as it will not come back. None: never told.
        drain_delay: seconds between SIGTERM and the end of serving, in which readiness fails already; 0 or
            more; see `drain_on_sigterm`. For ASGI only: it begins to count when the server starts the app.
            None: SIGTERM is none of our business.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or two groups share a path.

    Concurrency: read only; serves any number of threads and tasks at once.

    Source: draft-inadarei-api-health-check-06; Kubernetes API health endpoints; Spring Boot Actuator.
    """

    def __init__(
        self,
        health: Reporter,
        *,
        paths: PathsOf | None = None,
        prefix: str = "",
        aliases: Mapping[str, str] | None = None,
        details: Details | None = None,
        retry_after: Seconds | None = 5.0,
        drain_delay: Seconds | None = None,
    ) -> None:
        if isinstance(health, type) or not callable(getattr(health, "areport", None)):
            params.refuse(TypeError, "health", "must be a Health", health)
        self.health = health
        self.drain_delay = params.optional_seconds("drain_delay", drain_delay, above=False)
        self._details = None if details is None else details_of("details", details)
        wait = params.optional_seconds("retry_after", retry_after, above=False)
        self._retry_after = None if wait is None else str(math.ceil(wait))
        self._places = _places(paths, prefix, aliases)
        self._public = frozenset({*PATHS, *self._places.values()})
        self._below = tuple(f"{path}/" for path, group in self._places.items() if group == _ALL)

    @property
    def places(self) -> tuple[tuple[str, Place], ...]:
        """Each path with what it leads to; for frameworks with routes of their own."""
        return tuple((path, Place(group)) for path, group in self._places.items())

    @property
    def below(self) -> tuple[str, ...]:
        """The beginnings of paths that go on with a name that the client chooses."""
        return self._below

    def find(self, path: str) -> Place | None:
        """Return what *path* leads to; None where that is not health. A slash at the end does no harm."""
        group = self._places.get(path) or self._places.get(path.removesuffix("/"))
        if group is not None:
            return Place(group)
        for beginning in self._below:
            if path.startswith(beginning):
                return place_below(path.removeprefix(beginning))
        return None

    def claims(self, place: Place, asked: Asked) -> bool:
        """Tell whether *asked* is answered here, where an app is behind that may have pages below `/health`.

        Those who may not see details cannot tell by it which checks there are: only the groups that all may
        ask for are answered then, and everything else is the app's.

        Args:
            place: what `find` has found.
            asked: the request.

        Returns:
            Whether it is; if not, the app is to be called.
        """
        if not place.free:
            return True
        groups = {*self.health.groups, _ALL}
        if place.name in groups and place.name in self._public:
            return True
        # First, so that how long it takes tells nothing either.
        return self._shows(asked) and (place.name in groups or place.name in self.health.names)

    def respond(self, place: Place | None, asked: Asked) -> Answer:
        """Answer *asked* in a thread.

        Args:
            place: what `find` has found, or a framework.
            asked: the request.
        """
        inquiry = self._inquire(place, asked)
        if isinstance(inquiry, Answer):
            return inquiry
        try:
            # What answers for threads may be called on a loop, as in tests of an app; it is not held up.
            known = self.health.report if running_loop() is None else self.health.latest
            report = known(inquiry.group)
        except Exception:  # noqa: BLE001 - it is logged, and told as a failure
            return self._fail(inquiry, asked)
        return self._tell(inquiry, asked, report)

    async def arespond(self, place: Place | None, asked: Asked) -> Answer:
        """Answer *asked* in a task.

        Args:
            place: what `find` has found, or a framework.
            asked: the request.
        """
        inquiry = self._inquire(place, asked)
        if isinstance(inquiry, Answer):
            return inquiry
        try:
            report = await self.health.areport(inquiry.group)
        except Exception:  # noqa: BLE001 - it is logged, and told as a failure
            return self._fail(inquiry, asked)
        return self._tell(inquiry, asked, report)

    def _inquire(self, place: Place | None, asked: Asked) -> _Inquiry | Answer:
        if place is None:
            return _short(404, "not found", asked)
        if asked.method not in _METHODS:
            return _short(405, "method not allowed", asked, ("Allow", ", ".join(_METHODS)))
        details = self._shows(asked)
        groups = {*self.health.groups, _ALL}
        group, check = place.name, None
        # That there is such a group or check is a detail.
        if place.free and not details and group not in self._public:
            return _short(404, "not found", asked)
        if group not in groups:
            if not (place.free and details):
                return _short(404, "not found", asked)
            group, check = _ALL, place.name
        form = chosen(asked.query, asked.header("accept"))
        word = PATHS.get(place.name, f"/{place.name}")[1:]
        return _Inquiry(group, check, form, View(details, word, tuple(groups)))

    def _shows(self, asked: Asked) -> bool:
        return shows(self.health.details if self._details is None else self._details, asked)

    def _fail(self, inquiry: _Inquiry, asked: Asked) -> Answer:
        """Answer where a report could not be made; called where the error is handled.

        Who probes has to be told that something is wrong, in the form that it reads.
        """
        _log.exception("No report could be made on the health of group %r", inquiry.group)
        report = Report(inquiry.group, Status.FAIL, "", None, datetime.now(UTC), 0.0)
        status_only = inquiry._replace(check=None, view=inquiry.view._replace(details=False))
        return self._tell(status_only, asked, report)

    def _tell(self, inquiry: _Inquiry, asked: Asked, report: Report) -> Answer:
        if inquiry.check is not None:
            # Several policies, each of another kind, may share a name.
            results = tuple(result for result in report.results if result.name == inquiry.check)
            if not results:
                return _short(404, "not found", asked)
            status = worst(*(result.status for result in results))
            report = replace(report, group=inquiry.check, status=status, results=results, output="")
        further = []
        # What drains says why; it will not pass again, so nobody is told when to come back.
        if self._retry_after is not None and not report.ok and not report.output:
            further.append(("Retry-After", self._retry_after))
        body = inquiry.form.body(report, inquiry.view)
        return _answer(report.http_status, inquiry.form.content_type, body, asked, further)


def place_below(name: str) -> Place:
    """Return what *name* leads to, which follows `/health/`; a slash at its end does no harm."""
    name = name.removesuffix("/")
    return Place(name, free=True) if name else Place(_ALL)


def endpoints_of(parameter: str, health: Any) -> Endpoints:
    """Return *health* as endpoints, given as such or as a `Health` whose paths are those that all have."""
    if isinstance(health, Endpoints):
        return health
    if isinstance(health, type) or not callable(getattr(health, "areport", None)):
        params.refuse(TypeError, parameter, "must be a Health, Endpoints or None", health)
    return Endpoints(health)


def without_drain_delay(endpoints: Endpoints) -> Endpoints:
    """Return *endpoints* if nobody expects SIGTERM to be put off by whoever cannot.

    Raises:
        ValueError: somebody does.
    """
    if endpoints.drain_delay is not None:
        rule = "must be None but for ASGI apps and middlewares: call drain_on_sigterm, or use gunicorn's hook"
        params.refuse(ValueError, "drain_delay", rule, endpoints.drain_delay)
    return endpoints


def _answer(
    status: int, content_type: str, body: bytes, asked: Asked, further: Iterable[tuple[str, str]] = ()
) -> Answer:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *further,
    ]
    # Its header is the one that GET would get.
    return Answer(status, headers, b"" if asked.method == "HEAD" else body)


def _short(status: int, text: str, asked: Asked, *further: tuple[str, str]) -> Answer:
    return _answer(status, _PLAIN, f"{text}\n".encode("ascii"), asked, further)


def _places(paths: PathsOf | None, prefix: Any, aliases: Mapping[str, str] | None) -> dict[str, str]:
    given: Any = {} if paths is None else paths
    others: Any = {} if aliases is None else aliases
    if not isinstance(given, Mapping):
        params.refuse(TypeError, "paths", "must be a mapping of groups to paths", paths)
    if not isinstance(others, Mapping):
        params.refuse(TypeError, "aliases", "must be a mapping of paths to groups", aliases)
    if not isinstance(prefix, str):
        params.refuse(TypeError, "prefix", "must be text", prefix)
    if prefix:
        _check_path("prefix", prefix)
    places: dict[str, str] = {}
    for group, several in {**PATHS, **given}.items():
        params.named("paths", group)
        for path in _several(several):
            _place(places, "paths", prefix, path, group)
    for path, group in others.items():
        _place(places, "aliases", prefix, path, params.named("aliases", group))
    return places


def _several(paths: Any) -> Iterable[Any]:
    if paths is None:
        return ()
    if isinstance(paths, str):
        return (paths,)
    if not isinstance(paths, Iterable):
        params.refuse(TypeError, "paths", "must be a path, several paths or None for each group", paths)
    return paths


def _place(places: dict[str, str], parameter: str, prefix: str, path: Any, group: str) -> None:
    _check_path(parameter, path)
    whole = f"{prefix.removesuffix('/')}{path.removesuffix('/')}"
    if places.setdefault(whole, group) != group:
        params.refuse(
            ValueError, parameter, f"must not give the path of {places[whole]!r} to {group!r}", path
        )


def _check_path(parameter: str, path: Any) -> None:
    if not isinstance(path, str):
        params.refuse(TypeError, parameter, "must be paths as text", path)
    if len(path) < 2 or path[0] != "/" or not path.isprintable() or set(path) & set("?#%*{}<>: "):  # noqa: PLR2004
        params.refuse(
            ValueError, parameter, "must be paths such as '/ready', without templates or query", path
        )
