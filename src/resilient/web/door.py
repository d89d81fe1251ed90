"""What the two middlewares decide, and in which order. Written once, for both.

A request is let in by a coroutine. Under ASGI it is awaited; under WSGI it is run to its end in one step,
which works because everything that waits is asked of `Waits`, and the one for threads waits on the spot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypedDict, cast

from ..engine import params
from ..engine.deadline import time_left
from ..engine.priority import Priority, innermost_priority, priority_of
from ..errors import CallTimeoutError, DeadlineExceededError, MaintenanceError, RejectedError, ResilientError
from ..health.serving.asked import Asked
from ..health.serving.handler import Endpoints, Reporter, endpoints_of
from ..policies.rate_limiter.decision import Decision, refusal
from ..policies.rate_limiter.limiter import RateLimiter
from ..typing import Seconds
from .addresses import Trusted, proxies_of
from .deadlines import RequestTime, TimeLimits
from .headers import Dialect, RateFields, dialect_of
from .keys import Key, client_address, key_function
from .maintenance import Maintenance
from .notes import NOTES, Notes
from .paths import Paths, check_pattern, several_paths
from .priorities import PriorityKey, priority_function
from .problem import REFUSALS, Answer, problem
from .request import Request

__all__ = [
    "PROBES",
    "Block",
    "Door",
    "Gate",
    "RateLimit",
    "Visit",
    "Waits",
    "Words",
    "asked_of",
    "key_of",
    "outcome",
    "words_of",
]

PROBES: Final = ("/livez", "/readyz", "/startupz", "/health", "/healthz")
"""The paths that are exempt by default: an orchestrator that is refused would restart the service."""

RateLimit: TypeAlias = RateLimiter | str | Mapping[str, RateLimiter | str]
"""A limiter, a rate such as `"100/minute"`, or either for each path pattern."""


_NO_TIME: Final = 0.001  # seconds that are of no use to anybody


class Block(Protocol):
    """What a gate's `calling()` returns: entered by `with` or `async with`, and left without waiting.

    Under ASGI, too, it is left by `__exit__`. Frameworks cancel the task that sends the end of a stream when
    the client has read it: a place whose return had to be awaited would be lost there.

    A block that learns from how long requests take may have a method `answered(error)`, too. It is called
    when the answer begins, maybe more than once, with what `__exit__` would get: from then on it is the
    client that sets the pace, and a stream may last for hours.
    """

    def __enter__(self) -> object: ...
    def __aenter__(self) -> Awaitable[object]: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...


class Gate(Protocol):
    """Whatever lets some requests in and sheds the rest: a breaker, a bulkhead.

    Entering the block refuses by raising a `RejectedError`; leaving it gives the place back.
    """

    def calling(self) -> Block:
        """Return a block for one request."""
        ...


class Words(TypedDict, total=False):
    """The arguments of a middleware, where they are passed through; they are documented there."""

    rate_limit: RateLimit | None
    key: Key | None
    shed: Gate | None
    priority: PriorityKey | None
    deadline: Seconds | None
    maintenance: Maintenance | None
    exempt: Iterable[str]
    headers: Dialect
    trusted: Trusted
    health: Reporter | Endpoints | None


def words_of(parameter: str, given: Mapping[str, Any]) -> Words:
    """Return settings of an app as the arguments that they are, if there are such.

    Args:
        parameter: where they are set; for error messages.
        given: what is set there.

    Raises:
        ValueError: a name is none of them.
    """
    for name in given:
        params.one_of(parameter, name, tuple(Words.__annotations__))
    return cast("Words", dict(given))


class FaultyAnswerError(ResilientError):
    """Tell a gate that the app did answer, but with a status of 500 or above. It is never raised.

    What stands for a 504 is a `TimeoutError`, too: of those, an adaptive limit learns.
    """


class _LateAnswerError(FaultyAnswerError, TimeoutError):
    """The app has answered 504, be it for itself or for a service that it asks."""


def outcome(status: int | None, error: BaseException | None, *, gone: bool) -> BaseException | None:
    """Return what a gate is told of a request: None for a success.

    Args:
        status: of the app's answer; None where it gave none, or none to its end.
        error: what left the app, if anything did.
        gone: whether the client has left, which is an abandonment and no evidence against the app.
    """
    if gone and (error is None or isinstance(error, Exception)):
        return asyncio.CancelledError("the client has gone")
    if error is None and (status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR):
        kind = _LateAnswerError if status == HTTPStatus.GATEWAY_TIMEOUT else FaultyAnswerError
        return kind("no whole answer" if status is None else f"answered {status}")
    return _refusal_behind(error) if isinstance(error, Exception) else error


def _refusal_behind(error: Exception) -> Exception:
    """Return the refusal of which *error* was made, or *error* where it is one, or something else.

    Starlette raises an error of its own from one that it cannot answer any more, and task groups wrap what
    their tasks raise. A timeout among refusals counts: it is the one that may be evidence.
    """
    if isinstance(error, ExceptionGroup):
        late, others = error.split(CallTimeoutError)
        if others is not None and others.split(REFUSALS)[1] is not None:
            return error
        found: Exception = late or error
        while isinstance(found, ExceptionGroup):
            found = found.exceptions[0]
        return found
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, REFUSALS) else error


class Waits(NamedTuple):
    """How one world waits for a limiter and at a gate."""

    hit: Callable[[RateLimiter, str], Awaitable[Decision]]
    refund: Callable[[RateLimiter, Decision], Awaitable[None]]
    enter: Callable[[Block], Awaitable[object]]


class _Limit(NamedTuple):
    limiter: RateLimiter
    fields: RateFields


class Door:
    """The settings of a middleware; they are documented there.

    Concurrency: read only; what belongs to a request is its `Visit`.
    """

    def __init__(
        self,
        *,
        in_tasks: bool,
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
        self.dialect: Dialect = dialect_of(headers)
        self.limits = _limits(rate_limit, headers)
        self.key = key_of(key)
        self.shed = shed
        if isinstance(shed, type):
            params.refuse(TypeError, "shed", "must be a gate itself, not its class", shed)
        if shed is not None and not callable(getattr(shed, "calling", None)):
            params.refuse(TypeError, "shed", "must be a gate, with a method calling()", shed)
        if getattr(shed, "is_keyed", False):
            params.refuse(ValueError, "shed", "must not go by key: a request has none", shed)
        self.time_limits = TimeLimits(params.optional_seconds("deadline", deadline), in_tasks=in_tasks)
        self.maintenance = maintenance
        if maintenance is not None and not isinstance(maintenance, Maintenance):
            params.refuse(TypeError, "maintenance", "must be a Maintenance or None", maintenance)
        self._exempt = several_paths("exempt", exempt)
        self.proxies = proxies_of(trusted)
        self.health = None if health is None else endpoints_of("health", health)
        self.rank = _rank(priority, [path for path in PROBES if self._exempt.find(path) is None])

    def exempts(self, request: Request) -> bool:
        """Tell whether *request* is none of our business.

        Limits inside the app may be about it all the same, so it gets notes of whose word counts.
        """
        if self._exempt.find(request.path) is None:
            return False
        raw = request.raw
        raw[NOTES] = Notes(self.dialect, self.proxies, raw.get(NOTES), exempt=True)
        return True


def asked_of(request: Request) -> Asked:
    """Return what *request* asks, for who answers for health."""
    client = request.client
    address = None if client is None else str(client)
    return Asked(request.method, request.path, request.query, request.header, address, request.is_from_proxy)


def key_of(key: Key | None) -> Key:
    """Return *key* if it is a key function, and the client's address for None."""
    return client_address() if key is None else key_function("key", key)


def _limits(rate_limit: Any, headers: Dialect) -> Paths[_Limit] | None:
    if rate_limit is None:
        return None
    if isinstance(rate_limit, RateLimiter | str):
        limiters = {"*": RateLimiter(rate_limit) if isinstance(rate_limit, str) else rate_limit}
    elif isinstance(rate_limit, Mapping) and rate_limit:
        limiters = {pattern: _limiter(pattern, one) for pattern, one in rate_limit.items()}
    else:
        rule = "must be a RateLimiter, a rate such as '100/minute', or a mapping of paths to either"
        params.refuse(TypeError, "rate_limit", rule, rate_limit)
    limits = {pattern: _Limit(one, RateFields(one.quotas, headers)) for pattern, one in limiters.items()}
    return Paths("rate_limit", limits)


def _limiter(pattern: Any, limit: Any) -> RateLimiter:
    check_pattern("rate_limit", pattern)
    if isinstance(limit, RateLimiter):
        return limit
    if not isinstance(limit, str):
        params.refuse(TypeError, f"rate_limit[{pattern!r}]", "must be a RateLimiter or a rate", limit)
    return RateLimiter(limit, name=pattern)


def _rank(priority: PriorityKey | None, probes: list[str]) -> Callable[[Request], Priority | None] | None:
    """Return what tells the priority of a request; None where none has one of its own."""
    if priority is None and not probes:
        return None
    told = _untold if priority is None else priority_function("priority", priority)
    paths = several_paths("exempt", probes)

    def rank(request: Request) -> Priority | None:
        level = told(request)
        if level is not None:
            return priority_of("what priority= returns", level)
        return Priority.PROBE if paths.find(request.path) else None

    return rank


def _untold(_request: Request) -> None:
    return None


class Visit:
    """One request between `enter` and `leave`: its deadline and its place, each given back exactly once.

    Attributes:
        notes: what is known of the request, and told with its answer, whichever that is.
        wants_to_know: the gate's ear for when the answer begins; None where it has none.

    Concurrency: belongs to its request, and to the tasks of it in one event loop.
    """

    __slots__ = (
        "_door",
        "_ended",
        "_place",
        "_request",
        "_time",
        "_timed",
        "_waits",
        "notes",
        "wants_to_know",
    )

    def __init__(self, door: Door, request: Request, waits: Waits, *, timed: bool = True) -> None:
        self._door = door
        self._request = request
        self._waits = waits
        self._timed = timed
        self._time: RequestTime | None = None
        self._ended: RequestTime | None = None
        self._place: Block | None = None
        self.wants_to_know: Callable[[BaseException | None], object] | None = None
        request.raw[NOTES] = self.notes = Notes(door.dialect, door.proxies, request.raw.get(NOTES))

    @property
    def holds(self) -> bool:
        """Whether there is anything to give back."""
        return self._time is not None or self._place is not None

    async def enter(self, at_gate: Callable[[Block], Awaitable[object]] | None = None) -> None:
        """Let the request in.

        Args:
            at_gate: waits at the gate in another way than others of its world.

        Raises:
            RejectedError: it is refused; what it held by then is given back by `leave`.
        """
        door, request = self._door, self._request
        if door.maintenance is not None:
            door.maintenance.check(request)
        if self._timed:
            self._time = door.time_limits.begin(request)
        # Before anything is taken: it is the user's function, and may fail.
        if door.rank is not None and (level := door.rank(request)) is not None:
            innermost_priority.set(level)
        limit = None if door.limits is None else door.limits.find(request.path)
        decision: Decision | None = None
        # So is a key function; it is asked only where there is a limit to apply.
        if limit is not None and (key := door.key(request)) is not None:
            decision = await self._waits.hit(limit.limiter, key)
            self.notes.tell(decision, limit.fields.of(decision))
            if not decision.allowed:
                raise refusal(limit.limiter.name, decision)
        if door.shed is None:
            return
        place = door.shed.calling()
        try:
            await (at_gate or self._waits.enter)(place)
        except RejectedError as full:
            if limit is not None and decision is not None:
                await self._waits.refund(limit.limiter, decision)
            _check_time(full)
            raise
        self._place = place
        self.wants_to_know = getattr(place, "answered", None)

    def answered(self, status: int | None) -> None:
        """Tell the gate that the answer begins, where it `wants_to_know`."""
        if self.wants_to_know is not None:
            error = outcome(status, None, gone=False)
            self.wants_to_know(_evidence(error, self.notes.refusal, self._time))

    def leave(self, error: BaseException | None = None) -> None:
        """Give everything back; whoever comes first does so, and every other call does nothing.

        Args:
            error: how it ended; see `outcome`.

        Raises:
            CallTimeoutError: *error* is the cancellation by which the request's deadline cut the app off,
                at this call or at an earlier one.
        """
        time, self._time = self._time, None
        if time is None:
            if self._ended is not None:
                self._ended.check(error)
        else:
            self._ended = time
        place, self._place = self._place, None
        self.wants_to_know = None
        # Not kept there: its traceback leads back to the scope.
        refusal, self.notes.refusal = self.notes.refusal, None
        try:
            if time is not None:
                time.end(error)
        except Exception as late:
            error = late
            raise
        finally:
            if place is not None:
                error = _evidence(error, refusal, time)
                # A gate that refuses with hindsight, as a breaker does that the failure has opened, may do
                # so to the next request: this one has been served.
                with contextlib.suppress(RejectedError):
                    place.__exit__(None if error is None else type(error), error, None)

    def answer(self, error: Exception) -> Answer:
        """Return the response in place of the app's: *error* is one of `REFUSALS`."""
        maintenance, outer = self._door.maintenance, self.notes.outer
        if outer is not None:
            outer.refuse(error)
        if isinstance(error, MaintenanceError) and maintenance is not None:
            answer = maintenance.answer(error, self._request)
        else:
            self.notes.tell_refusal(error)
            answer = problem(error, self.notes.fields)
        # Its fields are those that GET would get.
        return answer._replace(body=b"") if self._request.method == "HEAD" else answer


def _evidence(
    error: BaseException | None, refusal: Exception | None, time: RequestTime | None
) -> BaseException | None:
    """Return what a gate is told in place of *error*, where that is no evidence against the app.

    Args:
        error: see `outcome`.
        refusal: that of a policy inside, of which the app has made its answer.
        time: the deadline of the request.
    """
    if refusal is not None and isinstance(error, FaultyAnswerError):
        error = refusal
    if time is not None and isinstance(error, Exception) and time.client_gave_up:
        return asyncio.CancelledError("the client's time has run out")
    return error


def _check_time(full: RejectedError) -> None:
    """Look at why a gate has refused; one that lets wait does so until the deadline, by a clock of its own.

    Raises:
        DeadlineExceededError: the time was up.
    """
    left = time_left()
    if left is not None and left < _NO_TIME:
        raise DeadlineExceededError("request: its time ran out before there was room for it") from full
