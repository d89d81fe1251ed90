"""What callers of a channel under policies get: calls that are futures or iterators, as grpc's own are."""

# The methods are grpc's, and documented there.
# ruff: noqa: D102

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator
from concurrent import futures
from types import TracebackType
from typing import Any

from ...engine.deadline import innermost
from .. import needing
from .client_errors import AbandonedError, rpc_error
from .client_rpc import Rpc
from .statuses import REFUSALS

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode

__all__ = ["Answer", "Promise", "Stream"]


class Answer(grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call that was answered by a policy, from a cache or a fallback."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def code(self) -> StatusCode:
        return StatusCode.OK

    def details(self) -> str:
        return ""

    def initial_metadata(self) -> tuple[()]:
        return ()

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002 - it has ended
        return False

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002
        return self._response

    def exception(self, timeout: float | None = None) -> None:  # noqa: ARG002
        return None

    def traceback(self, timeout: float | None = None) -> None:  # noqa: ARG002
        return None


class Promise(grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call that a thread makes.

    Concurrency: safe from any thread. Whoever cancels and the thread that makes the call meet at the future,
    which is settled once.
    """

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._future: futures.Future[Any] = futures.Future()
        self._lock = threading.Lock()

    def keep(self, make: Callable[[Rpc], Any]) -> None:
        """Make the call, and settle the future."""
        if self._rpc.is_cancelled:
            return
        try:
            ended = make(self._rpc)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asks for the result
            self._settle(error=error)
        else:
            self._settle(ended)

    def _settle(self, ended: Any = None, error: BaseException | None = None) -> bool:
        with self._lock:
            if self._future.done():
                return False
            if error is None:
                self._future.set_result(ended)
            else:
                self._future.set_exception(error)
        return True

    def cancel(self) -> bool:
        if self._future.done():
            return False
        self._rpc.cancel()
        return self._settle(error=grpc.FutureCancelledError())

    def cancelled(self) -> bool:
        return self._future.done() and isinstance(self._future.exception(), grpc.FutureCancelledError)

    def running(self) -> bool:
        return not self._future.done()

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float | None = None) -> Any:
        return self._ended(timeout).result()

    def exception(self, timeout: float | None = None) -> Any:
        try:
            error = self._future.exception(timeout)
        except futures.TimeoutError:
            raise grpc.FutureTimeoutError from None
        if isinstance(error, grpc.FutureCancelledError):
            raise error
        return error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self._future.add_done_callback(lambda _: fn(self))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self._future.done():
            return False
        self._future.add_done_callback(lambda _: callback())
        return True

    def is_active(self) -> bool:
        return not self._future.done()

    def time_remaining(self) -> Any:
        return None if self._rpc.call is None else self._rpc.call.time_remaining()

    def code(self) -> Any:
        return self._told().code()

    def details(self) -> Any:
        return self._told().details()

    def initial_metadata(self) -> Any:
        return self._told().initial_metadata()

    def trailing_metadata(self) -> Any:
        return self._told().trailing_metadata()

    def _ended(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout)
        except futures.TimeoutError as error:
            if self._future.done():  # the call's own error may be a TimeoutError
                raise
            raise grpc.FutureTimeoutError from error

    def _told(self) -> Any:
        """Return what tells of the call when it has ended: the call, or the error."""
        error = self._future.exception()
        if error is None:
            return self._future.result()
        if isinstance(error, grpc.Call):
            return error
        if self._rpc.is_cancelled:
            return self._rpc.abandoned().error
        raise error  # it is no RPC's: there is no status to tell


class Stream(grpc.Call):  # type: ignore[misc]
    """A call with streamed answers: an iterator, and a call that tells of the attempt under way.

    Concurrency: as grpc's: one thread iterates, and any may cancel.
    """

    def __init__(self, rpc: Rpc, items: Generator[Any, Any, None]) -> None:
        self._rpc = rpc
        self._items = items
        self._error: Exception | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self._error is not None:
            raise self._error
        rpc = self._rpc
        before = innermost.get()
        try:
            if rpc.instant is not None:
                innermost.set(rpc.instant)
            return next(self._items)
        except AbandonedError as abandoned:
            self._error = abandoned.error
            raise abandoned.error from None
        except REFUSALS as error:
            self._error = rpc_error(error)
            raise self._error from error.__cause__
        except StopIteration:
            raise
        except Exception as error:
            self._error = error
            raise
        except BaseException:  # an interrupt: what comes next is not the end
            self._error = rpc.abandoned().error
            raise
        finally:
            innermost.set(before)

    def cancel(self) -> bool:
        """Cancel the call, and give back what it holds, unless a thread is waiting for the next message."""
        is_over = inspect.getgeneratorstate(self._items) == inspect.GEN_CLOSED
        cancelled = self._rpc.cancel()
        with contextlib.suppress(ValueError):  # it is: that thread gives back
            self._close()
            if not is_over:
                self._error = self._error or self._rpc.abandoned().error
        return cancelled

    def _close(self) -> None:
        begun, self._rpc.begun = self._rpc.begun, None
        if begun is not None and not isinstance(begun, Exception):
            begun.close()
        self._items.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._close()
        self._rpc.end()

    def code(self) -> Any:
        return self._told().code()

    def details(self) -> Any:
        return self._told().details()

    def initial_metadata(self) -> Any:
        return self._told().initial_metadata()

    def trailing_metadata(self) -> Any:
        return self._told().trailing_metadata()

    def is_active(self) -> bool:
        return self._error is None and bool(self._told().is_active())

    def time_remaining(self) -> Any:
        return self._told().time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> Any:
        return self._told().add_callback(callback)

    def __getattr__(self, name: str) -> Any:
        """Return what else a call of grpc's can be asked: it is a future, too."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._told(), name)

    def _told(self) -> Any:
        if self._rpc.call is not None and not isinstance(self._error, REFUSALS):
            return self._rpc.call
        begun = self._rpc.begun
        return self._error or (rpc_error(begun) if isinstance(begun, Exception) else self._rpc.call)
