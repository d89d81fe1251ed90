"""Policies around the attempts of a call: as they wrap functions, but told what a status means."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping
from typing import Any, Final

from ...engine import params
from ...engine.policy import Policy
from ...engine.shape import Shape
from ...errors import RejectedError
from ...policies.adaptive_throttle import AdaptiveThrottle
from ...policies.circuit_breaker.breaker import CircuitBreaker
from ...policies.pipeline import Pipeline
from ...policies.retry import Retry
from ...policies.timeout import Deadline, Timeout
from ...typing import Seconds
from .. import needing
from .client_errors import code_of
from .client_rpc import Rpc

with needing("grpcio", extra="grpc"):
    import grpc
    from grpc import StatusCode

__all__ = ["BEGUN", "Attempts", "Guard", "Guards"]

BEGUN: Final = object()
"""The first item of a stream under policies, by which it is known that its call was sent."""

# Codes that are no evidence against a server, but may be worth another try if a rule says so.
_NOT_NOW: Final = frozenset({StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED})
_TOO_MUCH: Final = frozenset({StatusCode.RESOURCE_EXHAUSTED})

_JUDGES: Final = (CircuitBreaker, Retry, AdaptiveThrottle)
_FIRST_ITEM: Final = frozenset({"Retry", "Fallback", "Fallback.chain", "Cache"})
"""The policies that look at a stream's first item, which has to be a message: `BEGUN` is not for them."""


class _Final(BaseException):
    """Carries an error past a policy that is not to judge it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Told:
    """A result in place of an error that is an answer like another to the policy that gets it."""

    __slots__ = ("told",)

    def __init__(self, error: Exception) -> None:
        self.told: Exception | None = error


class Attempts:
    """The functions that make one attempt, by shape: a unary answer, and a stream of them."""

    __slots__ = ("stream", "unary")

    def __init__(self, unary: Callable[[Rpc], Any], stream: Callable[[Rpc], Any]) -> None:
        self.unary = unary
        self.stream = stream


class Guard:
    """The policies of a method, around its attempts.

    Attributes:
        unary: makes a call with one answer: a function of an `Rpc`, or a coroutine function.
        is_split: whether there are policies that look at a stream's first item. What is inside of the last
            of them is begun when the call is made; they themselves, and what is around them, when it is read.
        limit: seconds that the latter leave to an attempt; None where they say nothing.
        replays: whether requests may have to be sent again.
    """

    def __init__(
        self,
        policies: tuple[Policy, ...],
        attempts: Attempts,
        failures: frozenset[StatusCode],
        *,
        is_async: bool,
    ) -> None:
        leaves = [leaf for policy in policies for leaf in _leaves(policy)]
        shapes = (Shape.COROUTINE, Shape.ASYNC_GENERATOR) if is_async else (Shape.FUNCTION, Shape.GENERATOR)
        self._failures = failures
        self.unary = self._around(leaves, attempts.unary, shapes[0])
        edge = max((at + 1 for at, leaf in enumerate(leaves) if _waits_for_items(leaf)), default=0)
        outer, inner = leaves[:edge], leaves[edge:]
        self._stream_shape = shapes[1]
        self._outer = outer
        self.is_split = bool(outer)
        # A policy may refuse streams (a cache does): that is the error of whoever makes such a call.
        self._inner = inner
        self._attempt = attempts.stream
        self._made: tuple[Callable[[Rpc], Any], Callable[[Rpc], Any]] | None = None
        limits = [limit for leaf in outer if (limit := _limit_of(leaf)) is not None]
        self.limit = min(limits, default=None)
        self.replays = any(isinstance(leaf, Retry) for leaf in leaves)

    def streams(
        self, resume: Callable[[Callable[[Rpc], Any]], Callable[[Rpc], Any]]
    ) -> tuple[Callable[[Rpc], Any], Callable[[Rpc], Any]]:
        """Return what makes one attempt at a stream, with `BEGUN`, and what makes the whole of it, without.

        Args:
            resume: makes of the former a generator function that goes on with the attempt in `Rpc.begun`, or
                makes another, and leaves out `BEGUN`.
        """
        if self._made is None:
            inner = self._around(self._inner, self._attempt, self._stream_shape)
            self._made = inner, self._around(self._outer, resume(inner), self._stream_shape)
        return self._made

    def _around(self, leaves: list[Policy], fn: Callable[[Rpc], Any], shape: Shape) -> Callable[[Rpc], Any]:
        for leaf in reversed(leaves):
            if isinstance(leaf, _JUDGES):
                fn = _SHIELDS[shape](leaf, fn, _Rule(leaf, self._failures, shape))
            else:
                fn = leaf.wrap(fn, shape)
        return fn


def _leaves(policy: Policy) -> list[Policy]:
    if isinstance(policy, Pipeline):
        return [leaf for part in policy.policies for leaf in _leaves(part)]
    return [policy]


def _waits_for_items(policy: Policy) -> bool:
    return any(layer.kind in _FIRST_ITEM for layer in policy.layers)


def _limit_of(policy: Policy) -> float | None:
    if isinstance(policy, Timeout | Deadline):
        return policy.seconds
    return policy.timeout if isinstance(policy, Retry) else None


class _Rule:
    """What a policy that judges is told of an error.

    Around such a policy go two wrappers, a pair for each shape. The inner one hands on the failures that are
    meant for it; an error that is an answer (nothing found, not allowed) it keeps and ends well; the outer
    one raises it again.
    """

    __slots__ = ("_is_retry", "_reads_results", "_shown")

    def __init__(self, policy: Policy, failures: frozenset[StatusCode], shape: Shape) -> None:
        self._is_retry = isinstance(policy, Retry)
        more = _NOT_NOW if self._is_retry else _TOO_MUCH if isinstance(policy, AdaptiveThrottle) else ()
        self._shown = failures.union(more)
        # A rule about results could not read what is there in place of one. Streams have none.
        self._reads_results = shape in _ANSWERS and _judges_results(policy)

    def keeps(self, error: Exception, rpc: Rpc) -> bool:
        """Tell whether *error* is an answer like any other.

        Raises:
            _Final: the policy is not to hear of it at all.
        """
        code = None if isinstance(error, RejectedError) else code_of(error)
        is_answer = code is not None and code not in self._shown
        spared = self._reads_results if is_answer else self._is_retry and rpc.is_final(error)
        if spared:
            raise _Final(error) from None
        return is_answer


_ANSWERS: Final = frozenset({Shape.FUNCTION, Shape.COROUTINE})


def _judges_results(policy: Any) -> bool:
    return getattr(policy, "_on_result", None) is not None or getattr(policy, "refuses", None) is not None


def _function(policy: Policy, fn: Callable[[Rpc], Any], rule: _Rule) -> Callable[[Rpc], Any]:
    def told(rpc: Rpc) -> Any:
        try:
            return fn(rpc)
        except grpc.RpcError as error:
            if rule.keeps(error, rpc):
                return _Told(error)
            raise

    guarded = policy.wrap(told, Shape.FUNCTION)

    def around(rpc: Rpc) -> Any:
        try:
            result = guarded(rpc)
        except _Final as final:
            result = _Told(final.error)
        if type(result) is _Told:
            _tell(result)
        return result

    return around


def _coroutine(policy: Policy, fn: Callable[[Rpc], Any], rule: _Rule) -> Callable[[Rpc], Any]:
    async def told(rpc: Rpc) -> Any:
        try:
            return await fn(rpc)
        except grpc.RpcError as error:
            if rule.keeps(error, rpc):
                return _Told(error)
            raise

    guarded = policy.wrap(told, Shape.COROUTINE)

    async def around(rpc: Rpc) -> Any:
        try:
            result = await guarded(rpc)
        except _Final as final:
            result = _Told(final.error)
        if type(result) is _Told:
            _tell(result)
        return result

    return around


def _generator(policy: Policy, fn: Callable[[Rpc], Any], rule: _Rule) -> Callable[[Rpc], Any]:
    def told(rpc: Rpc) -> Generator[Any, Any, None]:
        try:
            yield from fn(rpc)
        except grpc.RpcError as error:
            if not rule.keeps(error, rpc):
                raise
            rpc.told = error

    guarded = policy.wrap(told, Shape.GENERATOR)

    def around(rpc: Rpc) -> Generator[Any, Any, None]:
        try:
            yield from guarded(rpc)
        except _Final as final:
            rpc.told = final.error
        _tell(rpc)

    return around


def _async_generator(policy: Policy, fn: Callable[[Rpc], Any], rule: _Rule) -> Callable[[Rpc], Any]:
    async def told(rpc: Rpc) -> AsyncGenerator[Any, Any]:
        try:
            async with contextlib.aclosing(fn(rpc)) as stream:
                async for item in stream:
                    yield item
        except grpc.RpcError as error:
            if not rule.keeps(error, rpc):
                raise
            rpc.told = error

    guarded = policy.wrap(told, Shape.ASYNC_GENERATOR)

    async def around(rpc: Rpc) -> AsyncGenerator[Any, Any]:
        try:
            async with contextlib.aclosing(guarded(rpc)) as stream:
                async for item in stream:
                    yield item
        except _Final as final:
            rpc.told = final.error
        _tell(rpc)

    return around


def _tell(keeper: _Told | Rpc) -> None:
    """Raise the error that was kept, if any was: once, since whoever calls this is in its traceback."""
    error, keeper.told = keeper.told, None
    if error is not None:
        try:
            raise error
        finally:
            del error


_SHIELDS: Final = {
    Shape.FUNCTION: _function,
    Shape.COROUTINE: _coroutine,
    Shape.GENERATOR: _generator,
    Shape.ASYNC_GENERATOR: _async_generator,
}


class Guards:
    """The policies of a client, by method.

    Args:
        policies: those of every method that is not named.
        methods: those of single methods or services.
        timeout: seconds for calls without a timeout; or seconds by method.
        failures: the codes that are evidence against the server.
        attempts: what makes an attempt.
        is_async: whether it is asynchronous.
    """

    def __init__(
        self,
        policies: tuple[Policy, ...],
        methods: Mapping[str, Policy | Iterable[Policy] | None] | None,
        timeout: Seconds | Mapping[str, Seconds | None] | None,
        failures: Collection[StatusCode],
        attempts: Attempts,
        *,
        is_async: bool,
    ) -> None:
        codes = _codes(failures)

        def guard(parameter: str, chosen: Any) -> Guard | None:
            found = _policies(parameter, chosen)
            return Guard(found, attempts, codes, is_async=is_async) if found else None

        self.policies = _policies("policies", policies)
        default = Guard(self.policies, attempts, codes, is_async=is_async)
        bare = Guard((), attempts, codes, is_async=is_async)
        named = {} if methods is None else _mapping("methods", methods)
        self._guards: dict[str, Guard] = {
            _pattern("methods", pattern): guard("methods", chosen) or bare
            for pattern, chosen in named.items()
        }
        self._guards.setdefault("*", default)
        self._timeouts: dict[str, float | None] = {"*": None}
        if isinstance(timeout, Mapping):
            for pattern, seconds in timeout.items():
                self._timeouts[_pattern("timeout", pattern)] = params.optional_seconds("timeout", seconds)
        elif timeout is not None:
            self._timeouts["*"] = params.seconds("timeout", timeout, above=True)

    def of(self, method: str) -> Guard:
        """Return the policies of *method*."""
        guard: Guard = _chosen(self._guards, method)
        return guard

    def timeout_of(self, method: str) -> float | None:
        """Return the seconds that a call of *method* has if it names none."""
        seconds: float | None = _chosen(self._timeouts, method)
        return seconds


def _mapping(parameter: str, value: Any) -> Mapping[str, Any]:
    """Return *value* if it is a mapping."""
    if not isinstance(value, Mapping):
        params.refuse(TypeError, parameter, "must be a mapping of methods", value)
    return value


def _chosen(table: Mapping[str, Any], method: str) -> Any:
    """Return the entry of *method*: its own, else that of its service, else that of all."""
    if method in table:
        return table[method]
    service = f"{method.rpartition('/')[0]}/*"
    return table[service] if service in table else table["*"]


def _pattern(parameter: str, pattern: Any) -> str:
    text = params.named(parameter, pattern)
    if text != "*" and not (text.startswith("/") and text.count("/") == 2 and not text.endswith("/")):  # noqa: PLR2004
        rule = "must name methods as '/package.Service/Method', '/package.Service/*' or '*'"
        params.refuse(ValueError, parameter, rule, pattern)
    return text


def _policies(parameter: str, chosen: Any) -> tuple[Policy, ...]:
    several = () if chosen is None else (chosen,) if isinstance(chosen, Policy) else chosen
    try:
        policies = tuple(several)
    except TypeError:
        params.refuse(TypeError, parameter, "must be policies", chosen)
    if not policies:
        return ()
    return (Pipeline(*policies),) if len(policies) > 1 else _checked(policies)


def _checked(policies: tuple[Any, ...]) -> tuple[Policy, ...]:
    return policies if isinstance(policies[0], Policy) else Pipeline(*policies).policies


def _codes(failures: Any) -> frozenset[StatusCode]:
    if not isinstance(failures, Collection) or not all(isinstance(code, StatusCode) for code in failures):
        params.refuse(TypeError, "failures", "must be members of grpc.StatusCode", failures)
    return frozenset(failures)
