"""Fallback: answer something useful when the call does not."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, ParamSpec, TypeVar

from ..engine import params
from ..engine.drive.rescues import rescue
from ..engine.fork import renew_after_fork
from ..engine.living import remember
from ..engine.matching import Matcher, is_one, verdict_of
from ..engine.measure import Measure
from ..engine.policy import Policy, callee_of, policies_of
from ..engine.shape import Shape, describe, shape_of
from ..events import Announcer, FallbackUsed, error_text
from ..typing import FailureRule
from .measures import of_fallback

__all__ = ["Fallback", "FallbackStats"]

P = ParamSpec("P")
T = TypeVar("T")

_STREAMS: Final = frozenset({Shape.GENERATOR, Shape.ASYNC_GENERATOR})


@dataclass(frozen=True, slots=True)
class FallbackStats:
    """What a fallback has counted.

    Attributes:
        used: calls it answered for.
        failed: calls for which its handler failed too.
    """

    used: int
    failed: int


class Fallback(Policy):
    """Answer with something else when a call fails or is refused.

    An exception of the handler's own is raised as it is, with the call's exception as its context. The answer
    never counts as a success of the dependency and is never cached: a fallback inside a breaker or a cache is
    refused.

    Args:
        handler: the value to answer with; or a function that makes it, called with the exception and the
            arguments of the call (`handler(exc, *args, **kwargs)`); or a function that is under a policy, a
            second source, called with the arguments of the call alone. It may be asynchronous where the
            guarded function is. For a generator, the answer is something to iterate over.
        on: which exceptions to answer for: types, predicates `(exc) -> bool`, or a tuple of both. Refusals
            (`RejectedError`) are judged like any other exception.
        name: in errors, events and statistics.

    Raises:
        TypeError: an argument has the wrong type; when decorating: the handler is asynchronous and the
            function is not, or the value cannot be iterated over and the function is a generator.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop; a call that succeeds costs nothing.

    Source: M. Nygard, "Release It!", 2nd edition; Hystrix's fallbacks.
    """

    kind: ClassVar[str] = "Fallback"

    def __init__(self, handler: object, *, on: FailureRule = Exception, name: str | None = None) -> None:
        self._name = "fallback" if name is None else params.named("name", name)
        self._matcher = Matcher("on", on)
        self._answer = _Answer(handler, with_exception=not (callable(handler) and policies_of(handler)))
        self.announcer = Announcer()
        self._used = self._failed = 0
        self.after_fork()
        renew_after_fork(self)
        remember(self)

    @classmethod
    def chain(
        cls, primary: Callable[P, T], *sources: Callable[P, T], on: FailureRule = Exception
    ) -> Callable[P, T]:
        """Return a function that tries *primary* and then each of *sources*, in order.

        Args:
            primary: the first source; its shape and signature are the result's.
            *sources: further sources, at least one; each is called with the arguments of the call.
            on: which exceptions lead on to the next source, as for `Fallback`.

        Returns:
            A function of the shape of *primary*. The last source's exception is raised when all fail.

        Raises:
            TypeError: there is no further source, or a source cannot be called.
        """
        if not sources:
            msg = "Fallback.chain needs at least one source after the first one"
            raise TypeError(msg)
        params.callback("source", primary)
        chained = primary
        for source in sources:
            chained = _Link(params.callback("source", source), on)(chained)
        return chained

    @property
    def name(self) -> str:
        """The policy's name."""
        return self._name

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, answered for."""
        self._answer.check(fn, shape)
        # The handler is to see the call's own arguments, not the callee that `call` hands on before them.
        is_direct = callee_of(inspect.unwrap(fn), (None,))[0] is None
        return rescue(_Direct(self) if is_direct else self, fn, shape)

    def takes(self, exc: Exception) -> bool:
        """Return whether to answer for *exc*."""
        # Not `match`: retries and breakers pass our refusals by; a fallback is there to answer for them.
        matcher = self._matcher
        return is_one(exc, matcher.types) or any(
            verdict_of(predicate, exc, default=True) for predicate in matcher.predicates
        )

    def answer(self, exc: Exception, args: Any, kwargs: Any) -> Any:
        """Return the answer for a call that ended in *exc*."""
        try:
            value = self._answer.make(exc, args, kwargs)
        except Exception:
            self._count(exc, failed=True)
            raise
        self._count(exc, failed=False)
        return value

    async def aanswer(self, exc: Exception, args: Any, kwargs: Any) -> Any:
        """Return the answer for an asynchronous call that ended in *exc*."""
        try:
            value = self._answer.make(exc, args, kwargs)
            if self._answer.makes_awaitables and inspect.isawaitable(value):
                value = await value
        except Exception:
            self._count(exc, failed=True)
            raise
        self._count(exc, failed=False)
        return value

    def stats(self) -> FallbackStats:
        """Return what has been counted so far."""
        with self._lock:
            return FallbackStats(self._used, self._failed)

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_fallback(self.stats())

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<Fallback {self._name!r} used {stats.used} times, failed {stats.failed} times>"

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self._lock = threading.RLock()  # re-entrant, for signal handlers
        self.announcer.after_fork()

    def _count(self, exc: Exception, *, failed: bool) -> None:
        with self._lock:
            self._used += not failed
            self._failed += failed
        if self.announcer.heard and not failed:
            self.announcer.announce(FallbackUsed(self._name, error_text(exc)))


class _Direct:
    """A fallback as `call` and `acall` need it: their wrapped function is given the callee first."""

    def __init__(self, fallback: Fallback) -> None:
        self.takes = fallback.takes
        self._fallback = fallback

    def answer(self, exc: Exception, args: Any, kwargs: Any) -> Any:
        return self._fallback.answer(exc, args[1:], kwargs)

    def aanswer(self, exc: Exception, args: Any, kwargs: Any) -> Awaitable[Any]:
        return self._fallback.aanswer(exc, args[1:], kwargs)


class _Link(Fallback):
    """A step to another source. Its answer is as good as the first one's: it may be cached."""

    kind: ClassVar[str] = "Fallback.chain"

    def __init__(self, source: Callable[..., Any], on: FailureRule) -> None:
        super().__init__(None, on=on, name=f"chain-to-{describe(source)}")
        self._answer = _Answer(source, with_exception=False)


class _Answer:
    """How a fallback's handler is turned into an answer."""

    def __init__(self, handler: object, *, with_exception: bool) -> None:
        self._handler = handler
        self._with_exception = with_exception
        self.makes_awaitables = callable(handler)
        self._shape = shape_of(handler) if callable(handler) and not isinstance(handler, type) else None

    def make(self, exc: Exception, args: Any, kwargs: Any) -> Any:
        if not callable(self._handler):
            return self._handler
        return self._handler(exc, *args, **kwargs) if self._with_exception else self._handler(*args, **kwargs)

    def check(self, fn: Callable[..., Any], shape: Shape) -> None:
        """Refuse at decoration what could only fail in the middle of an outage."""
        if self._shape is not None and self._shape.is_async and not shape.is_async:
            msg = f"an asynchronous handler cannot answer for {describe(fn)}, which is a {shape.value}"
            raise TypeError(msg)
        if shape in _STREAMS and not callable(self._handler) and not self._can_be_iterated(shape):
            subject = f"{describe(fn)}, a {shape.value}"
            raise TypeError(f"handler must be iterable to answer for {subject}, got {self._handler!r}")

    def _can_be_iterated(self, shape: Shape) -> bool:
        return isinstance(self._handler, Iterable) or (
            shape.is_async and isinstance(self._handler, AsyncIterable)
        )
