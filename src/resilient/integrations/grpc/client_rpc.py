"""One call of a client under policies: what is sent with each attempt, and what is known of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ...engine.clock import MONOTONIC
from ...engine.deadline import Instant, current_deadline, time_left
from ...engine.fork import renew_after_fork
from ...engine.window import Tally
from ...errors import CallTimeoutError, DeadlineExceededError, RejectedError
from .. import needing
from .client_errors import AbandonedError, code_of, pushback_of, rpc_error
from .statuses import Refusal

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode
    from grpc.aio import AioRpcError, Metadata

__all__ = ["ClientStats", "Counts", "Rpc", "timed"]

_NEARLY: Final = 0.005  # seconds by which two moments may differ and still be meant to be one
_UNCONNECTED: Final = (
    "failed to connect",
    "connections to all backends failing",
    "handshake",
    "dns resolution",
)


@dataclass(frozen=True, slots=True)
class ClientStats:
    """What a client's calls have come to.

    Attributes:
        calls: calls that were made of it.
        attempts: calls that were sent, retries included.
        answered: attempts that ended with `OK`.
        cancelled: attempts that were given up, or cut off.
        statuses: how many attempts ended with which status code, by its name; `OK` and `CANCELLED` are not
            among them.
        connection_failures: attempts that got through to no server: refused, unreachable, no handshake.
    """

    calls: int
    attempts: int
    answered: int
    cancelled: int
    statuses: dict[str, int]
    connection_failures: int

    @property
    def success_ratio(self) -> float:
        """The share of attempts that ended with `OK`, of those that ended by themselves; 1 if none did."""
        ended = self.answered + sum(self.statuses.values())
        return self.answered / ended if ended else 1.0


class Counts:
    """What the attempts of all calls came to.

    Concurrency: safe from any thread; a good call costs three increments and no lock.
    """

    def __init__(self) -> None:
        self.calls, self.attempts, self.answered = Tally(), Tally(), Tally()
        self._cancelled = self._unconnected = 0
        self._statuses: dict[str, int] = {}
        self.after_fork()
        renew_after_fork(self)

    def failed(self, error: BaseException) -> None:
        """Note how an attempt ended that was not answered with `OK`."""
        code = code_of(error)
        name = "UNKNOWN" if code is None else code.name
        unconnected = code is StatusCode.UNAVAILABLE and _is_unconnected(error)
        with self._lock:
            self._statuses[name] = self._statuses.get(name, 0) + 1
            self._unconnected += unconnected

    def cancelled(self) -> None:
        """Note an attempt that was given up."""
        with self._lock:
            self._cancelled += 1

    def read(self) -> ClientStats:
        """Return what has been counted so far."""
        with self._lock:
            return ClientStats(
                calls=self.calls.read(),
                attempts=self.attempts.read(),
                answered=self.answered.read(),
                cancelled=self._cancelled,
                statuses=dict(self._statuses),
                connection_failures=self._unconnected,
            )

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self._lock = threading.RLock()


def _is_unconnected(error: Any) -> bool:
    try:
        text = str(error.details() or "").lower()
    except Exception:  # noqa: BLE001 - somebody else's class, in the middle of a failure
        return False
    return any(sign in text for sign in _UNCONNECTED)


class _Timed(grpc.ClientCallDetails):  # type: ignore[misc]
    """The details of a call with another timeout."""

    def __init__(self, details: Any, timeout: float) -> None:
        self._details = details
        self.timeout = timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._details, name)


def timed(details: Any, timeout: float | None) -> Any:
    """Return *details* with *timeout*, whatever sort of details an interceptor outside has made."""
    if timeout is None:
        return details
    replace = getattr(details, "_replace", None)
    return _Timed(details, timeout) if replace is None else replace(timeout=timeout)


_BY_THE_CALLER: Final = "Locally cancelled by application!"  # as gRPC puts it


_NOTHING: Final = object()  # not an answer of any call


class Rpc:
    """A call that a client makes: what key functions and the handlers of fallbacks are given.

    Attributes:
        method: its full name, such as `/shop.Payment/Charge`.
        request: the request; an iterator where requests are streamed.
        metadata: what the caller sends with it; None if nothing.
        timeout: the seconds the caller gives it; None where it named none.
    """

    __slots__ = (
        "_counts",
        "_details",
        "_name",
        "_ours",
        "_until",
        "begun",
        "call",
        "instant",
        "is_cancelled",
        "is_unread",
        "limit",
        "metadata",
        "method",
        "replay",
        "request",
        "response",
        "start",
        "timeout",
        "told",
    )

    def __init__(
        self,
        method: str,
        details: Any,
        request: Any,
        start: Callable[[Any, Any], Any],
        *,
        name: str,
        counts: Counts,
    ) -> None:
        self.method = method
        self.request = request
        self.metadata = getattr(details, "metadata", None)
        self.timeout: float | None = getattr(details, "timeout", None)
        self._details = details
        self._name = name
        self._counts = counts
        self._until = None if self.timeout is None else MONOTONIC() + self.timeout
        # The limit of the attempt under way, in seconds, where it is none of the caller's.
        self._ours: float | None = None
        self.start = start
        self.replay: Any = None  # of the requests, where they are streamed and may have to be sent again
        self.instant: Instant | None = None
        self.call: Any = None  # of the last attempt
        self.begun: Any = None  # the first attempt at a stream, which is made before anybody asks for it
        # Seconds that policies around that one leave to it, whose own deadlines do not hold yet.
        self.limit: float | None = None
        self.response: Any = _NOTHING
        self.told: Exception | None = None  # an error on its way past a policy to which it is an answer
        self.is_cancelled = False
        self.is_unread = False  # a stream whose messages nobody waits for
        next(counts.calls.ticker)

    def within(self, default: float | None) -> Instant | None:
        """Return until when the call wants its answer: the caller's time, else *default* seconds from now."""
        seconds = default if self.timeout is None else self.timeout
        if seconds is None:
            return None
        instant = self.instant = Instant()
        instant.clock = MONOTONIC
        instant.outer = current_deadline()
        instant.when = MONOTONIC() + seconds
        outer = instant.outer
        if outer is not None and (left := outer.when - outer.clock()) < seconds:
            instant.when = MONOTONIC() + left
        instant.over = False
        return instant

    def send(self) -> Any:
        """Begin an attempt, and return what `start` returns.

        Raises:
            DeadlineExceededError: there is no time left.
            AbandonedError: the caller has cancelled the call.
        """
        if self.is_cancelled:
            raise self.abandoned()
        seconds = time_left()
        if self.limit is not None:
            seconds = self.limit if seconds is None else min(seconds, self.limit)
        if seconds is not None and seconds <= 0.0:
            msg = f"{self._name}: the deadline of {self.method} passed {-seconds:.3g} s ago, it was not sent"
            raise DeadlineExceededError(msg, policy=self._name)
        is_callers = seconds is not None and self._until is not None
        self._ours = None if is_callers and MONOTONIC() + seconds > self._until - _NEARLY else seconds  # type: ignore[operator]
        next(self._counts.attempts.ticker)
        return self.start(timed(self._details, seconds), self._requests())

    def answered(self, response: Any = _NOTHING) -> Any:
        """Note that the attempt under way was answered; return the *response*."""
        next(self._counts.answered.ticker)
        self.response = response
        return response

    def failed(self, error: Exception) -> BaseException:
        """Return what the policies are told of an attempt that ended with *error*.

        A cancelled one says nothing. Where the time that ran out was not what the caller had named, it is our
        error, too.
        """
        if isinstance(error, RejectedError):
            return error  # of policies of an interceptor further inside
        code = code_of(error)
        if code is StatusCode.CANCELLED or isinstance(error, grpc.FutureCancelledError):
            self._counts.cancelled()
            return AbandonedError(error)
        self._counts.failed(error)
        if code is StatusCode.DEADLINE_EXCEEDED:
            if self._ours is not None:
                error = self._late(error, code, self._ours)
            # Whether the server was slow, or whoever should have read, nobody knows.
            return AbandonedError(error) if self.is_unread else error
        pushback = pushback_of(error)
        if pushback is not None and pushback >= 0.0:
            with contextlib.suppress(Exception):  # somebody else's class may not take it
                error.retry_after = pushback  # type: ignore[attr-defined]
        return error

    def _late(self, error: Exception, code: StatusCode, seconds: float) -> Exception:
        late = f"{self._name}: no answer from {self.method} in {seconds:.3g} s"
        said = Refusal(code, _details(error) or late, tuple(_trailing(error)))
        return rpc_error(CallTimeoutError(late, policy=self._name, seconds=seconds), said)

    def lost(self) -> None:
        """Note that the attempt under way was given up."""
        self._counts.cancelled()

    def abandoned(self) -> AbandonedError:
        """Return what stands for a call that its caller has cancelled."""
        return AbandonedError(
            AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata(), details=_BY_THE_CALLER)
        )

    def is_final(self, error: BaseException) -> bool:
        """Tell whether no other attempt may follow *error*, whatever a policy thinks of it."""
        if self.is_cancelled or (self.replay is not None and self.replay.is_lost):
            return True
        pushback = None if isinstance(error, RejectedError) else pushback_of(error)
        return pushback is not None and pushback < 0.0

    def cancel(self) -> bool:
        """Give the call up; return whether there was anything to give up."""
        self.is_cancelled = True
        return self.call is not None and bool(self.call.cancel())

    def end(self) -> None:
        """Note that nobody waits for the answer any more, and let go of what would make another attempt."""
        self.start = _over  # it refers to the call that refers to this
        if self.instant is not None:
            self.instant.over = True

    def _requests(self) -> Any:
        return self.request if self.replay is None else self.replay.again()


def _over(_details: Any, _request: Any) -> Any:
    raise RuntimeError("the call is over")


def _details(error: Any) -> str | None:
    try:
        text: str | None = error.details()
    except Exception:  # noqa: BLE001 - somebody else's class
        return None
    return text


def _trailing(error: Any) -> Any:
    try:
        return error.trailing_metadata() or ()
    except Exception:  # noqa: BLE001 - somebody else's class
        return ()
