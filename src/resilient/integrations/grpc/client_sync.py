"""Policies around the calls of a channel of `grpc`: threads, futures and iterators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

from ...engine import params
from ...engine.deadline import innermost
from ...engine.policy import Policy
from ...engine.workers import Job, Workers
from ...typing import Seconds
from .. import needing
from .client_calls import Answer, Promise, Stream
from .client_errors import FAILURES, AbandonedError, rpc_error
from .client_guards import BEGUN, Attempts, Guard, Guards
from .client_replay import Replay
from .client_rpc import ClientStats, Counts, Rpc
from .statuses import REFUSALS

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode

__all__ = ["ResilienceClientInterceptor"]


class ResilienceClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[misc]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[misc]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[misc]
    grpc.StreamStreamClientInterceptor,  # type: ignore[misc]
):
    """Put policies around every call of a channel of `grpc`: `grpc.intercept_channel(channel, this)`.

    Each attempt is a call of its own, and is sent the time that is left: of the caller's timeout, of
    `deadline`, of a `Timeout` inside. What policies refuse is raised as their error, and it is a
    `grpc.RpcError` with a status, too.

    Which statuses are evidence against the server is settled here for all policies: to a breaker, a throttle
    and a retry, an error that tells of the request (`NOT_FOUND`, `INVALID_ARGUMENT`, `PERMISSION_DENIED`) is
    an answer like any other. A cancelled call says nothing. A server that pushes back
    (`grpc-retry-pushback-ms`) is obeyed: no retry comes before its time, and none at all if it wants none.

    A stream is under its policies until it ends, and retried until its first message. Requests that are
    streamed can be sent again up to a hundred of them.

    Args:
        *policies: for all methods, outermost first, in the order of a `Pipeline`. Key functions and handlers
            of fallbacks are given an `Rpc`.
        methods: other policies for single methods (`"/shop.Payment/Charge"`) or services
            (`"/shop.Payment/*"`): one, several or None for none.
        timeout: seconds for a call whose caller names none, its retries included; above 0. None: no limit. A
            mapping by method, in the same words as *methods*.
        failures: the status codes that are evidence against the server.
        threads: threads for calls made by `future()`: each has one to itself until it ends, and further ones
            wait. At least 1.
        name: in errors.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
        PipelineOrderError: the order of policies is known to go wrong.

    Concurrency: safe from any thread; one object may serve many channels.

    Source: gRFC A6 for retries and pushback; gRPC's deadlines.
    """

    def __init__(
        self,
        *policies: Policy,
        methods: Mapping[str, Policy | Iterable[Policy] | None] | None = None,
        timeout: Seconds | Mapping[str, Seconds | None] | None = None,
        failures: Collection[StatusCode] = FAILURES,
        threads: int = 32,
        name: str = "grpc-client",
    ) -> None:
        self.name = params.named("name", name)
        self._guards = Guards(
            policies, methods, timeout, failures, Attempts(_attempt, _stream_attempt), is_async=False
        )
        self._workers = Workers(params.count("threads", threads), f"resilient-{name}")
        self._counts = Counts()

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies of all methods that are not named."""
        return self._guards.policies

    def stats(self) -> ClientStats:
        """Return what the calls have come to so far."""
        return self._counts.read()

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        """Make a call; of grpc's interface.

        Args:
            continuation: makes the call.
            client_call_details: the method, the timeout and what else is sent.
            request: the request.

        Returns:
            The call, which has ended; or has not, where `future()` was asked for.
        """
        return self._unary(continuation, client_call_details, request, streams=False)

    def intercept_stream_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Make a call with streamed requests, as `intercept_unary_unary` makes one of a single request."""
        return self._unary(continuation, client_call_details, request_iterator, streams=True)

    def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        """Make a call with streamed answers; of grpc's interface.

        Args:
            continuation: makes the call.
            client_call_details: the method, the timeout and what else is sent.
            request: the request.

        Returns:
            The call, which is an iterator.
        """
        return self._stream(continuation, client_call_details, request, streams=False)

    def intercept_stream_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Make a call with streams both ways, as `intercept_unary_stream` makes one of a single request."""
        return self._stream(continuation, client_call_details, request_iterator, streams=True)

    def _rpc(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> tuple[Rpc, Guard]:
        method = details.method
        guard = self._guards.of(method)
        rpc = Rpc(method, details, request, continuation, name=self.name, counts=self._counts)
        if streams and guard.replays:
            rpc.replay = Replay(request)
        rpc.within(self._guards.timeout_of(method))
        return rpc, guard

    def _unary(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> Any:
        rpc, guard = self._rpc(continuation, details, request, streams=streams)
        before = innermost.get()
        try:
            if rpc.instant is not None:
                innermost.set(rpc.instant)
            return self._later(rpc, guard) if _is_future(continuation) else _made(guard, rpc)
        finally:
            innermost.set(before)

    def _later(self, rpc: Rpc, guard: Guard) -> Promise:
        promise = Promise(rpc)
        self._workers.submit(
            Job(functools.partial(promise.keep, functools.partial(_made, guard)), self._workers.overdue)
        )
        return promise

    def _stream(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> Any:
        rpc, guard = self._rpc(continuation, details, request, streams=streams)
        begin, whole = guard.streams(_resumed)
        # The call is sent now, as it would be without us: somebody may wait for what it does at the server.
        first = begin(rpc)
        before = innermost.get()
        try:
            if rpc.instant is not None:
                innermost.set(rpc.instant)
            rpc.limit = guard.limit
            next(first)
            rpc.begun = first
        except Exception as error:  # noqa: BLE001 - it is raised here, or where the stream is read
            if not guard.is_split:
                raise rpc_error(error) from error.__cause__
            rpc.begun = error
        finally:
            rpc.limit = None
            innermost.set(before)
        return Stream(rpc, whole(rpc))


def _is_future(continuation: Any) -> bool:
    """Tell whether `future()` was asked for, which grpc does not tell interceptors.

    Who is not known to have asked for one waits, and gets a call that has ended: that is a future, too.
    """
    return ".future." in getattr(continuation, "__qualname__", "")


def _made(guard: Guard, rpc: Rpc) -> Any:
    """Make a call with one answer; return it, ended."""
    try:
        response = guard.unary(rpc)
    except AbandonedError as abandoned:
        raise abandoned.error from None
    except REFUSALS as error:
        raise rpc_error(error) from error.__cause__
    finally:
        rpc.end()
    return rpc.call if rpc.response is response else Answer(response)


def _sent(rpc: Rpc) -> Any:
    """Begin an attempt; return its call."""
    call = rpc.call = rpc.send()
    if rpc.is_cancelled:  # by another thread, which did not see the call yet
        call.cancel()
    return call


def _result_of(call: Any) -> Any:
    if isinstance(call, Exception) and not isinstance(call, grpc.Future):
        raise call  # of an interceptor inside: gRPC hands it on as if it were a call
    return call.result()


def _attempt(rpc: Rpc) -> Any:
    call = _sent(rpc)
    try:
        response = _result_of(call)
    except (grpc.RpcError, grpc.FutureCancelledError) as error:
        failed = rpc.failed(error)
        if failed is error:
            raise
        raise failed from error
    except Exception:
        raise
    except BaseException:  # an interrupt
        rpc.lost()
        call.cancel()
        raise
    return rpc.answered(response)


def _stream_attempt(rpc: Rpc) -> Generator[Any, Any, None]:
    call = _sent(rpc)
    try:
        yield BEGUN
        while True:
            try:
                item = next(call)
            except StopIteration:
                break
            except grpc.RpcError as error:
                failed = rpc.failed(error)
                if failed is error:
                    raise
                raise failed from error
            yield item
        rpc.answered()
    except GeneratorExit:
        rpc.lost()
        raise
    finally:
        call.cancel()  # nothing, once it has ended
        del call  # it may be the error, and this frame in its traceback


def _resumed(begin: Callable[[Rpc], Any]) -> Callable[[Rpc], Any]:
    def resumed(rpc: Rpc) -> Generator[Any, Any, None]:
        stream, rpc.begun = rpc.begun, None
        if isinstance(stream, Exception):
            try:
                raise stream
            finally:
                del stream
        if stream is None:
            stream = begin(rpc)
            next(stream)
        yield from stream

    return resumed
