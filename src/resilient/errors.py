"""Every error the library raises of its own.

Two families. `RejectedError`: *your function was not called*, so nothing is known about the dependency.
`CallTimeoutError`: it was called and did not answer in time. Everything else that leaves a guarded call
is the call's own exception, untouched.

All of them can be pickled, and each rejection is a new instance: a shared one would grow its traceback
with every raise. A subclass that has an `__init__` of its own and does not call this one's is complete all
the same: each attribute has a default in its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pybreaker

if TYPE_CHECKING:
    from .policies.rate_limiter.decision import Decision

__all__ = [
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "DeadlineExceededError",
    "MaintenanceError",
    "PipelineOrderError",
    "RateLimitedError",
    "RejectedError",
    "ResilientError",
    "ThrottledError",
]


class ResilientError(Exception):
    """Base of every error in this library."""


class RejectedError(ResilientError):
    """Tell that a policy refused a call: the guarded function was not called.

    A refusal is our own and no evidence against the dependency: breakers ignore it, and a retry does not
    repeat it unless its class is named in `on=`.

    Args:
        message: what was refused, and why.
        policy: the name of the policy that refused.
        retry_after: seconds after which another try makes sense; None where that is not known.
    """

    policy: str = ""
    retry_after: float | None = None

    def __init__(self, message: str = "", *, policy: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.policy = policy
        self.retry_after = retry_after


class CircuitOpenError(RejectedError, pybreaker.CircuitBreakerError):
    """Tell that a circuit breaker does not let calls through now.

    It is a `pybreaker.CircuitBreakerError` too, so code written for pybreaker goes on catching it.

    Args:
        message: what was refused, and why.
        policy: the breaker's name.
        retry_after: seconds until the breaker will try the dependency again; None when it was opened by
            hand without an end.
        last_failure: the last failure it counted, as text (never the exception: that would keep frames
            and all their locals alive).
    """

    last_failure: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        last_failure: str | None = None,
    ) -> None:
        # Straight to the base: a refusal should cost as little as can be when there are many of them.
        Exception.__init__(self, message)
        self.policy = policy
        self.retry_after = retry_after
        self.last_failure = last_failure


class RateLimitedError(RejectedError):
    """Tell that a rate limit is used up.

    Args:
        message: what was refused, and why.
        policy: the limiter's name.
        retry_after: seconds until the same call would be let in, if nobody else takes its place; None if it
            never would be.
        decision: all that the limiter knows about it.
    """

    decision: Decision | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        decision: Decision | None = None,
    ) -> None:
        super().__init__(message, policy=policy, retry_after=retry_after)
        self.decision = decision


class MaintenanceError(RejectedError):
    """Tell that the service is closed for maintenance."""


class BulkheadFullError(RejectedError):
    """Tell that no slot came free in time: all of a policy's slots or threads are taken.

    Args:
        message: what was refused, and why.
        policy: the policy's name.
        retry_after: seconds until another try makes sense; None where nobody knows.
        limit: the slots that the call might have had one of; None where it was not a question of those.
        in_use: how many of them were taken.
        waiting: how many calls were waiting for one.
    """

    limit: int | None = None
    in_use: int | None = None
    waiting: int | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        limit: int | None = None,
        in_use: int | None = None,
        waiting: int | None = None,
    ) -> None:
        # Straight to the base: a refusal should cost as little as can be when there are many of them.
        Exception.__init__(self, message)
        self.policy = policy
        self.retry_after = retry_after
        self.limit = limit
        self.in_use = in_use
        self.waiting = waiting


class ThrottledError(RejectedError):
    """Tell that a dependency accepts only a part of what it is sent, and this call was not sent.

    Args:
        message: what was refused, and why.
        policy: the throttle's name.
        retry_after: None: whether a call is refused is chance, so that any later one may be let through.
        probability: the share of calls that was refused at that moment.
    """

    probability: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        probability: float | None = None,
    ) -> None:
        # Straight to the base: a refusal should cost as little as can be when there are many of them.
        Exception.__init__(self, message)
        self.policy = policy
        self.retry_after = retry_after
        self.probability = probability


class DeadlineExceededError(RejectedError, TimeoutError):
    """Tell that the caller's deadline had passed before the call was begun."""


class CallTimeoutError(ResilientError, TimeoutError):
    """Tell that a call was begun and did not end within its time.

    Args:
        message: what ran out of time.
        policy: the name of the policy that set the limit.
        seconds: the limit, in seconds.
    """

    policy: str = ""
    seconds: float | None = None

    def __init__(self, message: str = "", *, policy: str = "", seconds: float | None = None) -> None:
        super().__init__(message)
        self.policy = policy
        self.seconds = seconds


class PipelineOrderError(ResilientError, ValueError):
    """Tell that policies are nested in an order that is known to go wrong, and what to move."""
