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
    from .pool.borrowers import Borrower

__all__ = [
    "BulkheadFullError",
    "CallTimeoutError",
    "CircuitOpenError",
    "ConnectionReclaimedError",
    "ConnectionReturnedError",
    "DeadlineExceededError",
    "MaintenanceError",
    "PipelineOrderError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "PoolUnavailableError",
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


class PoolTimeoutError(RejectedError, TimeoutError):
    """Tell that no connection of a pool came free in time.

    Args:
        message: which pool, where its connections are, and who has held some for longest.
        policy: the pool's name.
        retry_after: None: nobody knows.
        size: the connections there were, those that were being made or mended included.
        idle: how many of them nobody had.
        used: how many were lent.
        waiting: how many callers were waiting, this one not included.
        borrowers: who held a connection for longest, at most three, the oldest first.
        last_failure: why connecting failed last, as text; None if it did not fail since it last succeeded.
    """

    size: int | None = None
    idle: int | None = None
    used: int | None = None
    waiting: int | None = None
    borrowers: tuple[Borrower, ...] = ()
    last_failure: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        size: int | None = None,
        idle: int | None = None,
        used: int | None = None,
        waiting: int | None = None,
        borrowers: tuple[Borrower, ...] = (),
        last_failure: str | None = None,
    ) -> None:
        super().__init__(message, policy=policy, retry_after=retry_after)
        self.size = size
        self.idle = idle
        self.used = used
        self.waiting = waiting
        self.borrowers = borrowers
        self.last_failure = last_failure


class PoolFullError(RejectedError):
    """Tell that so many callers wait for a connection already that this one was not let wait.

    Args:
        message: which pool, and how many wait.
        policy: the pool's name.
        retry_after: None: nobody knows.
        waiting: how many callers were waiting.
    """

    waiting: int | None = None

    def __init__(
        self,
        message: str = "",
        *,
        policy: str = "",
        retry_after: float | None = None,
        waiting: int | None = None,
    ) -> None:
        super().__init__(message, policy=policy, retry_after=retry_after)
        self.waiting = waiting


class PoolUnavailableError(RejectedError, ConnectionError):
    """Tell that a pool has no connection to give, and that its server is known to be down.

    Args:
        message: which pool, and how connecting failed last.
        policy: the pool's name.
        retry_after: seconds until the pool tries to connect again.
        last_failure: why connecting failed last, as text.
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
        super().__init__(message, policy=policy, retry_after=retry_after)
        self.last_failure = last_failure


class PoolClosedError(ResilientError):
    """Tell that a pool was closed: it lends nothing any more.

    Args:
        message: which pool.
        policy: the pool's name.
    """

    policy: str = ""

    def __init__(self, message: str = "", *, policy: str = "") -> None:
        super().__init__(message)
        self.policy = policy


class ConnectionReclaimedError(ResilientError):
    """Tell a borrower that its connection was taken away: held for too long, or the pool was closed.

    What was not committed is lost: the server's side of the connection has been closed.

    Args:
        message: which pool, after how long, and where the connection was borrowed.
        policy: the pool's name.
    """

    policy: str = ""

    def __init__(self, message: str = "", *, policy: str = "") -> None:
        super().__init__(message)
        self.policy = policy


class ConnectionReturnedError(ResilientError):
    """Tell that a connection was used, or returned, after it had been returned already.

    Args:
        message: what was done, and of which pool the connection was.
        policy: the pool's name.
    """

    policy: str = ""

    def __init__(self, message: str = "", *, policy: str = "") -> None:
        super().__init__(message)
        self.policy = policy


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
