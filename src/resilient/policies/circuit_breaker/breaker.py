"""The circuit breaker users hold."""

# pybreaker's signatures are looser or narrower than what is true here (a rule may be off, a timeout may be a
# function, `calling` serves `async with` too); callers of pybreaker's words are served all the same.
# mypy: disable-error-code="override, misc"
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Self, overload

import pybreaker

from ...engine import params
from ...engine.clock import MONOTONIC
from ...engine.drive.gates import GateBlock, gate
from ...engine.finding import Finding
from ...engine.living import remember
from ...engine.matching import Matcher, verdict_of
from ...engine.measure import Measure
from ...engine.policy import Policy
from ...engine.shape import Shape
from ...engine.window import Calls
from ...errors import CircuitOpenError
from ...events import Listener
from ...typing import Clock, FailureRule, P, Predicate, Seconds, T
from ..fallback import Fallback
from ..measures import of_breaker
from .core import BreakerCore
from .pybreaker_bridge import Bridge, StorageMirror, state_object
from .states import BreakerStats, Mode, Rules, State

__all__ = ["BreakerStats", "CircuitBreaker"]


class _Default(float):
    """A default that can be told from the same number given by the user."""


_DEFAULT_RATIO = _Default(0.5)


class CircuitBreaker(Policy, pybreaker.CircuitBreaker):
    """Stop calling a dependency that fails, and find out carefully when it is back.

    *Closed*, it lets calls through and counts. It *opens* when, with at least *min_calls* in the window, the
    share of failures reaches *failure_ratio* or that of slow calls *slow_ratio*; or after *fail_max* failures
    in a row. Open, it refuses with `CircuitOpenError`. After *reset_timeout* it is *half-open*: *probes*
    calls at a time go through, *success_threshold* good ones close it, one bad or slow one opens it again.

    The call that trips it gets its own exception. A call that is cancelled or interrupted says nothing about
    the dependency, unless it had been slow already. A result that arrives after the state has changed is
    dropped. A call made from within a probe rides along with it.

    Also a `pybreaker.CircuitBreaker`: code written for pybreaker keeps working, except that calls run at the
    same time, that excluded exceptions count as nothing instead of as successes, and that the defaults are
    those below.

    Args:
        name: in errors, events and statistics.
        failure_ratio: opens at this share of failures in the window; above 0, at most 1. None switches the
            rule off, and so does giving *fail_max* without it.
        min_calls: calls in the window before a ratio counts; at least 1.
        window: seconds (it forgets in steps of a tenth), or `Calls(n)` for the last n calls.
        fail_max: opens after so many failures in a row; at least 1. None switches the rule off.
        slow_after: a call longer than so many seconds is slow; above 0. None: no call is. Streams never are.
        slow_ratio: opens at this share of slow calls in the window; above 0, at most 1.
        reset_timeout: seconds it stays open, 0 or more; or a function of how often it opened in a row.
        probes: calls let through at the same time while half-open; at least 1.
        success_threshold: good probes that close it; at least 1.
        probe_timeout: seconds after which a probe loses its place; above 0. None: `slow_after`, else
            `reset_timeout`.
        throw_new_error_on_trip: raise `CircuitOpenError` from the call that trips it, as pybreaker does.
        ramp: seconds after closing in which traffic is let back in evenly; 0 lets all in at once.
        on: what is a failure: exception types, predicates `(exc) -> bool`, or a tuple of both. A predicate
            may return seconds: open now, for so long. What is no failure counts as nothing.
        exclude: what is never a failure, in the same words.
        on_result: which results are failures: a predicate `(result) -> bool`, or seconds as above. Blocks and
            streams have no result to judge.
        fallback: answers in place of refusals and failures, as `Fallback(handler)` outside would.
        listeners: functions of an `Event`, and pybreaker listeners.
        state_storage: a pybreaker storage that mirrors the state; one that is away costs the calls nothing.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop. While closed and well, a call costs one increment and
        no lock.

    Source: M. Nygard, "Release It!", 2nd edition; resilience4j and Polly v8 for the window; sony/gobreaker
        for results that come too late.
    """

    kind: ClassVar[str] = "CircuitBreaker"

    # pybreaker's constructor is not called: it would set up the engine that this class replaces.
    def __init__(
        self,
        name: str = "circuit-breaker",
        *,
        failure_ratio: float | None = _DEFAULT_RATIO,
        min_calls: int = 10,
        window: Seconds | Calls = 30.0,
        fail_max: int | None = None,
        slow_after: Seconds | None = None,
        slow_ratio: float = 1.0,
        reset_timeout: Seconds | Callable[[int], float] = 30.0,
        probes: int = 1,
        success_threshold: int = 1,
        probe_timeout: Seconds | None = None,
        throw_new_error_on_trip: bool = False,
        ramp: Seconds = 0.0,
        on: FailureRule = Exception,
        exclude: FailureRule | Iterable[Any] | None = (),
        on_result: Predicate | None = None,
        fallback: object = None,
        listeners: Iterable[Listener | pybreaker.CircuitBreakerListener] | None = (),
        state_storage: pybreaker.CircuitBreakerStorage | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        label = params.named("name", name)
        if isinstance(failure_ratio, _Default) and fail_max is not None:
            failure_ratio = None
        rules = Rules(
            failure_ratio=None if failure_ratio is None else params.ratio("failure_ratio", failure_ratio),
            min_calls=params.count("min_calls", min_calls),
            window=window if isinstance(window, Calls) else params.seconds("window", window, above=True),
            fail_max=None if fail_max is None else params.count("fail_max", fail_max),
            slow_after=params.optional_seconds("slow_after", slow_after),
            slow_ratio=params.ratio("slow_ratio", slow_ratio),
            reset_timeout=reset_timeout
            if callable(reset_timeout)
            else params.seconds("reset_timeout", reset_timeout),
            probes=params.count("probes", probes),
            success_threshold=params.count("success_threshold", success_threshold),
            probe_timeout=params.optional_seconds("probe_timeout", probe_timeout),
            ramp=params.seconds("ramp", ramp),
        )
        rules.check()
        self._on = Matcher("on", on, required=on_result is None)
        self._excluded = _several(
            "exclude", (exclude,) if callable(exclude) else exclude, "a type, a predicate or several of them"
        )
        self._exclude = _exclusions(self._excluded)
        self._on_result = None if on_result is None else params.callback("on_result", on_result)
        self._core = BreakerCore(
            label,
            rules,
            params.callback("clock", clock),
            self._judge,
            None if self._on_result is None else self._judge_result,
            throw_new_error_on_trip=params.flag("throw_new_error_on_trip", throw_new_error_on_trip),
        )
        self.announcer = self._core.announcer
        self._throws = throw_new_error_on_trip
        self._rescue = self._rescued_by(fallback)
        self._bridge = Bridge(self, self._core)
        self.announcer.listeners.add(self._bridge.on_event)
        self._storage = state_storage
        for listener in _several("listeners", listeners):
            self.add_listener(listener)
        self._mirror = self._mirrored_in(state_storage)  # after the listeners: they hear what comes of it
        remember(self)

    # As a policy.

    @property
    def layers(self) -> tuple[Policy, ...]:
        """The breaker, within its fallback if it has one."""
        return (self,) if self._rescue is None else (self._rescue, self)

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, behind this breaker."""
        guarded = gate(self._core, fn, shape)
        return guarded if self._rescue is None else self._rescue.wrap(guarded, shape)

    @overload
    def __call__(self, fn: Callable[P, T], /) -> Callable[P, T]: ...
    @overload
    def __call__(self, /, **options: bool) -> Self: ...
    def __call__(self, fn: Any = None, /, **options: bool) -> Any:
        """Return *fn* behind this breaker; see `Policy`.

        Args:
            fn: what to guard. Without it, the breaker itself is returned, as `@breaker()` expects.
            **options: pybreaker's `__pybreaker_call_async`, which is not needed here.

        Returns:
            The guarded function.

        Raises:
            TypeError: *fn* is a class or cannot be called, or an option is unknown.
            PipelineOrderError: *fn* is under a policy already that must not be inside this one.
        """
        options.pop("__pybreaker_call_async", None)
        if options:
            msg = f"unknown options: {', '.join(options)}"
            raise TypeError(msg)
        return self if fn is None else super().__call__(fn)

    def calling(self) -> GateBlock:
        """Guard a block: `with breaker.calling():` or `async with breaker.calling():`.

        Returns:
            A context manager for one use; entering it raises `CircuitOpenError` when the breaker refuses.
        """
        return GateBlock(self._core)

    async def call_async(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call *func* and await what it returns: pybreaker's word; `acall` is the typed one.

        Args:
            func: returns something to await: a coroutine function, or one of Tornado's.
            *args: for *func*.
            **kwargs: for *func*.

        Returns:
            The awaited result.
        """
        return await self._ainvoker(func, *args, **kwargs)

    def stats(self) -> BreakerStats:
        """Return what the breaker has counted and where it stands, as of one moment."""
        return self._core.stats()

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_breaker(self.stats(), self._core.stopwatch)

    def finding(self) -> Finding:
        """Return how what it guards is doing, for health. Failing: open, and not due for a probe yet."""
        return self._core.finding()

    def __repr__(self) -> str:
        stats = self.stats()
        override = "" if stats.override is None else f" ({stats.override})"
        failed = (
            f"{stats.consecutive_failures} of {self.fail_max} failures in a row"
            if self.rules.failure_ratio is None and self.fail_max is not None
            else f"{stats.failure_ratio:.0%} of {stats.window_calls} calls failed"
        )
        return f"<CircuitBreaker {self.name!r} {stats.state}{override}, {failed}, {stats.rejected} rejected>"

    # By hand.

    def force_open(self, for_: Seconds | None = None, reason: str | None = None) -> None:
        """Refuse every call until `resume`.

        Args:
            for_: seconds after which it resumes by itself; above 0. None: not by itself.
            reason: why; it is in the refusals and in the event.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range.
        """
        self._override(Mode.FORCED_OPEN, for_, reason)

    def force_closed(self, for_: Seconds | None = None, reason: str | None = None) -> None:
        """Let every call through and count, but never open, until `resume`.

        Args:
            for_: seconds after which it resumes by itself; above 0. None: not by itself.
            reason: why; it is in the event.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range.
        """
        self._override(Mode.FORCED_CLOSED, for_, reason)

    def observe_only(self, for_: Seconds | None = None, reason: str | None = None) -> None:
        """Count and change state as always, but refuse nothing, until `resume`.

        What would have been refused is counted as `unenforced`.

        Args:
            for_: seconds after which it resumes by itself; above 0. None: not by itself.
            reason: why; it is in the event.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of range.
        """
        self._override(Mode.OBSERVE_ONLY, for_, reason)

    def resume(self) -> None:
        """End what was set by hand. A breaker that was forced open goes on half-open: a probe decides."""
        self._core.resume()

    def open(self) -> bool:
        """Open now, for one `reset_timeout`.

        Returns:
            pybreaker's answer: `throw_new_error_on_trip`.
        """
        self._core.open_now("opened by hand")
        return self._throws

    def half_open(self) -> None:
        """Let probes through now."""
        self._core.half_open()

    def close(self) -> None:
        """Let all calls through now, with an empty window."""
        self._core.close()

    # What pybreaker shows.

    @property
    def name(self) -> str:
        """The breaker's name."""
        return self._core.name

    @name.setter
    def name(self, name: str | None) -> None:
        self._core.name = params.named("name", name)

    @property
    def current_state(self) -> str:
        """The state: "closed", "open" or "half-open"."""
        return self._core.state.value

    @property
    def state(self) -> pybreaker.CircuitBreakerState:
        """The state as pybreaker's object; its `name` is what counts."""
        return state_object(self, self._core.state)

    @state.setter
    def state(self, state: str) -> None:
        changes = {
            State.CLOSED.value: self.close,
            State.OPEN.value: self.open,
            State.HALF_OPEN.value: self.half_open,
        }
        if state not in changes:
            params.refuse(ValueError, "state", f"must be one of {', '.join(changes)}", state)
        changes[state]()

    @property
    def fail_counter(self) -> int:
        """Failures since the last success."""
        return self._core.consecutive

    @property
    def success_counter(self) -> int:
        """Good probes in the present half-open period."""
        return self._core.probe_successes

    @property
    def fail_max(self) -> int | None:
        """Failures in a row that open it; None where that rule is off."""
        return self._core.rules.fail_max

    @fail_max.setter
    def fail_max(self, number: int | None) -> None:
        self._change(fail_max=None if number is None else params.count("fail_max", number))

    @property
    def reset_timeout(self) -> float | Callable[[int], float]:
        """Seconds it stays open, or the function that says."""
        return self._core.rules.reset_timeout

    @reset_timeout.setter
    def reset_timeout(self, timeout: Seconds | Callable[[int], float]) -> None:
        self._change(reset_timeout=timeout if callable(timeout) else params.seconds("reset_timeout", timeout))

    @property
    def success_threshold(self) -> int:
        """Good probes that close it."""
        return self._core.rules.success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._change(success_threshold=params.count("success_threshold", threshold))

    @property
    def rules(self) -> Rules:
        """A copy of the rules it goes by."""
        return dataclasses.replace(self._core.rules)

    @property
    def excluded_exceptions(self) -> tuple[Any, ...]:
        """What is never a failure."""
        return self._excluded

    def add_excluded_exception(self, exception: Any) -> None:
        """Never count *exception* as a failure.

        Args:
            exception: a type or a predicate.
        """
        self._set_excluded((*self._excluded, exception))

    def remove_excluded_exception(self, exception: Any) -> None:
        """Undo `add_excluded_exception`.

        Args:
            exception: the type or predicate.

        Raises:
            ValueError: it is not excluded.
        """
        kept = list(self._excluded)
        kept.remove(exception)
        self._set_excluded(tuple(kept))

    def is_system_error(self, exception: BaseException) -> bool:
        """Return whether *exception* counts as a failure of the dependency.

        Args:
            exception: what a call ended in.
        """
        return isinstance(exception, Exception) and self._is_failure(exception)

    @property
    def listeners(self) -> tuple[Any, ...]:
        """The pybreaker listeners."""
        return self._bridge.listeners

    def add_listener(self, listener: Listener | pybreaker.CircuitBreakerListener) -> None:
        """Call *listener* with every event, or, if it is one of pybreaker's, as pybreaker does.

        Args:
            listener: a function of an `Event`, or a `pybreaker.CircuitBreakerListener`. The latter hears of
                every single call, and so costs every call.

        Raises:
            TypeError: *listener* is neither.
        """
        if isinstance(listener, pybreaker.CircuitBreakerListener):
            self._bridge.add(listener)
        else:
            super().add_listener(listener)

    def remove_listener(self, listener: Listener | pybreaker.CircuitBreakerListener) -> None:
        """Undo one `add_listener`.

        Args:
            listener: the listener to remove.

        Raises:
            ValueError: *listener* is not registered here.
        """
        if isinstance(listener, pybreaker.CircuitBreakerListener):
            self._bridge.remove(listener)
        else:
            super().remove_listener(listener)

    # Inside.

    def _judge(self, exc: Exception) -> bool | float:
        return False if self._exclude.match(exc) else self._on.match(exc)

    def _is_ours(self, exc: Exception) -> bool:
        # The refusal of a breaker further inside is about another dependency.
        return self._is_failure(exc) or (isinstance(exc, CircuitOpenError) and exc.policy == self.name)

    def _is_failure(self, exc: Exception) -> bool:
        return bool(self._judge(exc))

    def _judge_result(self, result: Any) -> bool | float:
        assert self._on_result is not None  # noqa: S101 - the core is given this method only if there is one
        return verdict_of(self._on_result, result, default=False)

    def _set_excluded(self, excluded: tuple[Any, ...]) -> None:
        self._exclude = _exclusions(excluded)
        self._excluded = excluded

    def _override(self, mode: Mode, for_: Seconds | None, reason: str | None) -> None:
        seconds = params.optional_seconds("for_", for_)
        self._core.override(mode, seconds, None if reason is None else params.named("reason", reason))

    def _change(self, **changes: Any) -> None:
        rules = dataclasses.replace(self._core.rules, **changes)
        rules.check()
        self._core.apply(rules)

    def _rescued_by(self, fallback: object) -> Fallback | None:
        if fallback is None:
            return None
        return Fallback(fallback, on=self._is_ours, name=f"{self.name}-fallback")

    def _mirrored_in(self, storage: pybreaker.CircuitBreakerStorage | None) -> StorageMirror | None:
        if storage is None:
            return None
        if not isinstance(storage, pybreaker.CircuitBreakerStorage):
            params.refuse(TypeError, "state_storage", "must be a pybreaker.CircuitBreakerStorage", storage)
        mirror = StorageMirror(self._core, storage)
        self._core.on_count = mirror.publish
        self.announcer.listeners.add(lambda _: mirror.publish())
        mirror.start()
        return mirror


def _several(parameter: str, values: Any, what: str = "several") -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable | None):
        params.refuse(TypeError, parameter, f"must be {what}, as in a list or tuple", values)
    return tuple(values or ())


def _exclusions(excluded: tuple[Any, ...]) -> Matcher:
    # pybreaker's users may name interrupts here; they are never counted, so there is nothing to exclude.
    parts = tuple(part for part in excluded if not _is_interrupt(part))
    return Matcher("exclude", parts, doubtful=False)


def _is_interrupt(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseException) and not issubclass(part, Exception)
