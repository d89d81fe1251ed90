"""Numbers that cannot work together, found before an outage finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..engine.policy import Policy
from .backoff import longest_waits
from .bulkhead.bulkhead import Bulkhead
from .circuit_breaker.breaker import CircuitBreaker
from .rate_limiter.limiter import RateLimiter
from .retry import Retry
from .timeout import Deadline, Timeout

__all__ = ["Finding", "lint"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Two settings that do not fit together.

    Attributes:
        code: a stable short name.
        message: what does not fit, with the figures, and what would.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def lint(layers: Sequence[Policy]) -> tuple[Finding, ...]:
    """Return what does not fit together in *layers*, outermost first."""
    checks = (
        _attempt_above_deadline,
        _backoff_outlasts_deadline,
        _window_below_timeout,
        _slow_never_seen,
        _hang_never_seen,
        _wait_taken_for_slowness,
        _slot_held_while_waiting,
        _nested_retries,
    )
    return tuple(finding for check in checks for finding in check(layers))


def _attempt_above_deadline(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, Timeout):
            continue
        total, whose = _total_time(layers[:position])
        if layer.seconds > total:
            yield Finding(
                "attempt-above-deadline",
                f"{layer.kind} {layer.name!r} allows an attempt {layer.seconds:g} s, {whose} allows "
                f"all of them {total:g} s: the attempt's limit can never be reached",
            )


def _backoff_outlasts_deadline(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, Retry) or layer.attempts is None:
            continue
        total, whose = _total_time(layers[: position + 1])
        waits = longest_waits(layer.wait, layer.attempts - 1)
        if waits is not None and waits > total:
            yield Finding(
                "backoff-outlasts-deadline",
                f"the waits of Retry {layer.name!r} may add up to {waits:g} s, {whose} allows {total:g} s: "
                f"the last of its {layer.attempts} attempts may never be made",
            )


def _window_below_timeout(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, CircuitBreaker) or not isinstance(window := layer.rules.window, float):
            continue
        if layer.rules.failure_ratio is None and layer.rules.slow_after is None:
            continue  # it goes by failures in a row alone
        longest = max(
            (inner.seconds for inner in layers[position + 1 :] if isinstance(inner, Timeout)), default=0.0
        )
        if window < 2 * longest:
            yield Finding(
                "window-below-timeout",
                f"CircuitBreaker {layer.name!r} looks back {window:g} s, a call may take {longest:g} s: "
                f"failures leave the window before there are enough; make it at least {2 * longest:g} s",
            )


def _slow_never_seen(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, CircuitBreaker) or (slow := layer.rules.slow_after) is None:
            continue
        for inner in layers[position + 1 :]:
            if isinstance(inner, Timeout) and slow >= inner.seconds:
                yield Finding(
                    "slow-never-seen",
                    f"CircuitBreaker {layer.name!r} calls a call slow after {slow:g} s, {inner.kind} "
                    f"{inner.name!r} ends it after {inner.seconds:g} s: no good call can be slow",
                )


def _hang_never_seen(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, CircuitBreaker) or layer.rules.slow_after is not None:
            continue
        total, whose = _total_time(layers[:position])
        if total < math.inf and _total_time(layers[position + 1 :])[0] == math.inf:
            yield Finding(
                "hang-never-seen",
                f"{whose} ends a call that hangs after {total:g} s, which CircuitBreaker {layer.name!r} "
                "inside it never counts; put a Timeout inside the breaker, or give it slow_after",
            )


def _wait_taken_for_slowness(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, CircuitBreaker) or (slow := layer.rules.slow_after) is None:
            continue
        for inner in layers[position + 1 :]:
            if isinstance(inner, RateLimiter | Bulkhead) and inner.max_wait >= slow:
                yield Finding(
                    "wait-taken-for-slowness",
                    f"{inner.kind} {inner.name!r} may have a call wait {inner.max_wait:g} s for its turn, "
                    f"CircuitBreaker {layer.name!r} around it calls a call slow after {slow:g} s: it would "
                    "open for waits that say nothing about the dependency",
                )


def _slot_held_while_waiting(layers: Sequence[Policy]) -> Iterator[Finding]:
    for position, layer in enumerate(layers):
        if not isinstance(layer, Bulkhead):
            continue
        for inner in layers[position + 1 :]:
            if isinstance(inner, RateLimiter) and inner.max_wait:
                yield Finding(
                    "slot-held-while-waiting",
                    f"RateLimiter {inner.name!r} may have a call wait {inner.max_wait:g} s for its turn, and "
                    f"it holds a slot of Bulkhead {layer.name!r} meanwhile; put the limiter outside",
                )


def _nested_retries(layers: Sequence[Policy]) -> Iterator[Finding]:
    retries = [layer for layer in layers if isinstance(layer, Retry)]
    if len(retries) > 1:
        attempts = [layer.attempts for layer in retries]
        most = math.prod(number for number in attempts if number is not None)
        times = " x ".join("unlimited" if number is None else str(number) for number in attempts)
        bound = "without a limit" if None in attempts else f"up to {most} times"
        yield Finding(
            "nested-retries",
            f"{len(retries)} retries are nested ({times}): one call may reach the dependency {bound}; "
            "retry at one level",
        )


def _total_time(outer: Sequence[Policy]) -> tuple[float, str]:
    """Return the tightest limit around all attempts, and whose it is."""
    limits = [
        (layer.seconds, f"{layer.kind} {layer.name!r}")
        for layer in outer
        if isinstance(layer, Deadline | Timeout)
    ]
    limits += [
        (layer.timeout, f"Retry {layer.name!r}")
        for layer in outer
        if isinstance(layer, Retry) and layer.timeout is not None
    ]
    return min(limits, default=(math.inf, ""))
