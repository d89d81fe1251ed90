"""What our refusals are to code that knows gRPC only: errors of its own kind, with a status."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ...errors import CallTimeoutError, RejectedError
from .. import needing
from .statuses import FAULTS, REFUSALS, Refusal, refusal_of, told_pushback

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode
    from grpc.aio import AioRpcError, Metadata

__all__ = [
    "FAILURES",
    "AbandonedError",
    "code_of",
    "is_failure",
    "is_transient",
    "pushback_of",
    "rpc_error",
    "status_in",
]

FAILURES: Final = FAULTS
"""The codes that are evidence against a server that answers with them."""

_AT_ONCE: Final = 1e-6  # seconds: a rule's "wait 0 s" would read as "no"


class AbandonedError(BaseException):
    """Carries an RPC that was cancelled through the policies, to which it says nothing.

    Not an `Exception`: no policy takes it for a failure, and none replaces it.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def code_of(error: BaseException) -> StatusCode | None:
    """Return the status that *error* tells; None where it tells none."""
    try:
        code = error.code() if isinstance(error, grpc.RpcError) else None
    except Exception:  # noqa: BLE001 - somebody else's class, in the middle of a failure
        return None
    return code if isinstance(code, StatusCode) else None


def pushback_of(error: BaseException) -> float | None:
    """Return when the server wants another try, in seconds; below 0: never; None: it has said nothing."""
    try:
        trailing = error.trailing_metadata() if isinstance(error, grpc.RpcError) else None
        return told_pushback(trailing)
    except Exception:  # noqa: BLE001 - somebody else's class, in the middle of a failure
        return None


def status_in(*codes: StatusCode) -> Callable[[Exception], bool | float]:
    """Make a rule for `Retry(on=...)` and others: the calls that ended with one of *codes*.

    What the server says of another try (`grpc-retry-pushback-ms`) goes before any wait of one's own: so long
    and no longer, or never.

    Args:
        *codes: status codes, at least one.

    Returns:
        A predicate of an exception, which answers yes, no, or yes with the seconds to wait.

    Raises:
        TypeError: one of them is no `grpc.StatusCode`, or there are none.

    Source: gRFC A6, "Pushback".
    """
    wanted = frozenset(codes)
    if not wanted or not all(isinstance(code, StatusCode) for code in wanted):
        raise TypeError(f"codes must be members of grpc.StatusCode, at least one, got {codes!r}")

    def is_one(error: Exception) -> bool | float:
        if code_of(error) not in wanted:
            return False
        pushback = pushback_of(error)
        return True if pushback is None else pushback >= 0.0 and max(pushback, _AT_ONCE)

    return is_one


_is_unavailable = status_in(StatusCode.UNAVAILABLE)


def is_transient(error: Exception) -> bool | float:
    """Tell whether a call is worth another try: its server was not to be had.

    Args:
        error: what the call raised.

    Returns:
        Yes for `UNAVAILABLE` alone; with the seconds to wait where the server has named them; no where it
        wants no other try.
    """
    return _is_unavailable(error)


def is_failure(error: Exception) -> bool:
    """Tell whether an error is evidence against the server, rather than against the request or its sender.

    Args:
        error: what a call raised.

    Returns:
        Yes for `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`, and for a call that
        did not end within its time; no for our own refusals.
    """
    if isinstance(error, RejectedError):
        return False
    return isinstance(error, CallTimeoutError) or code_of(error) in FAILURES


class _EndedError(AioRpcError, grpc.Call, grpc.Future):  # type: ignore[misc]
    """The side of a refusal that gRPC knows: an error, and a call that has ended with it.

    A call, because whatever an interceptor returns or raises is asked like one by those outside it.
    """

    _plain: tuple[type[Exception], dict[str, Any]]
    _code: StatusCode
    _details: str | None
    _initial_metadata: Metadata
    _trailing_metadata: Metadata
    _debug_error_string: str | None = None

    def says(self, kind: type[Exception], state: dict[str, Any], said: Refusal) -> None:
        """Be what *kind* with *state* is, with the status that is *said*."""
        for name, value in state.items():
            setattr(self, name, value)
        self._plain = (kind, state)
        self._code, self._details = said.code, said.details
        self._initial_metadata, self._trailing_metadata = Metadata(), Metadata(*said.trailing)

    # Human words, and not the form in which gRPC prints what came from a server.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._code}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        kind, state = self._plain
        said = Refusal(self._code, self._details or "", tuple(self._trailing_metadata))
        return _restored, (kind, self.args, state, said)

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def is_active(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def time_remaining(self) -> Any:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002 - it has ended
        return False

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def result(self, timeout: float | None = None) -> NoReturn:  # noqa: ARG002
        raise self

    def exception(self, timeout: float | None = None) -> Exception:  # noqa: ARG002
        return self

    def traceback(self, timeout: float | None = None) -> types.TracebackType | None:  # noqa: ARG002
        found: types.TracebackType | None = self.__traceback__
        return found

    def __iter__(self) -> _EndedError:
        return self

    def __next__(self) -> NoReturn:
        raise self


def _both(kind: Any) -> type[Exception] | None:
    """Return a class that is a *kind* and gRPC's; None where *kind* will not be mixed."""
    try:
        # Our text and our way through pickle go before those of the kind.
        words = {
            "__str__": _EndedError.__str__,
            "__repr__": _EndedError.__repr__,
            "__reduce__": _EndedError.__reduce__,
        }
        space = {**words, "__module__": kind.__module__, "__doc__": kind.__doc__}
        both: type[Exception] = types.new_class(
            f"Rpc{kind.__name__}", (kind, _EndedError), {}, lambda ns: ns.update(space)
        )
    except TypeError:
        return None
    return both


_cached_both: Callable[[Any], type[Exception] | None] = functools.lru_cache(maxsize=128)(_both)


def rpc_error(error: Exception, said: Refusal | None = None) -> Exception:
    """Return *error* as something that is a `grpc.RpcError`, too.

    Args:
        error: one of our refusals, or a call's time that ran out; anything else is returned as it is.
        said: the status it has. None: the one that a server of ours would answer with.

    Returns:
        An instance of a class below that of *error* and below `grpc.aio.AioRpcError`, with all that *error*
        has; its `details()` are the text of *error*.
    """
    if not isinstance(error, REFUSALS) or isinstance(error, grpc.RpcError):
        return error
    told = refusal_of(error)
    said = said or Refusal(told.code, str(error), told.trailing)
    return _restored(type(error), error.args, _state_of(error), said)


def _restored(kind: type[Exception], args: Any, state: dict[str, Any], said: Refusal) -> Exception:
    both: type[Exception] | None = _cached_both(kind)
    # No constructor: a user's may ask for anything. All that matters is in the state.
    restored = kind.__new__(kind, *args) if both is None else both.__new__(both, *args)
    restored.args = args
    if isinstance(restored, _EndedError):
        restored.says(kind, state, said)
    else:
        restored.__dict__.update(state)
    return restored


def _state_of(error: Exception) -> dict[str, Any]:
    state = dict(error.__dict__)
    if "__notes__" in state:
        state["__notes__"] = list(state["__notes__"])
    return state
