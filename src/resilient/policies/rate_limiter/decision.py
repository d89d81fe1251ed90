"""What a limiter answers."""

from __future__ import annotations

import math
from collections.abc import Collection
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ...engine import params
from ...errors import RateLimitedError
from .quota import Quota, permits

__all__ = ["ROUNDING", "Decision", "Source", "correction", "refusal", "settled"]

_MARK: Final = "_settled"
_RULE: Final = "must be a Decision of this limiter"

ROUNDING: Final = 1e-3
"""The part of a permit by which sums of seconds may miss it, so that the last of a bucket is not lost."""


class Source(NamedTuple):
    """Who decided: on which *rung*, and under which *quota* (of several, the tightest)."""

    rung: str
    quota: Quota


def _field(position: int, doc: str) -> Any:
    return property(itemgetter(position), doc=doc)


class Decision(tuple[Any, ...]):  # noqa: SLOT001 - see below
    """Whether a call may be made, and all that its caller may want to know: from one and the same moment.

    True where the call is allowed: `if limiter.hit(key): ...`.

    Attributes:
        allowed: whether the permits were taken.
        reset_after: seconds until all permits of the tightest quota are there again.
        retry_after: where denied, seconds until the same call would be allowed if nobody else takes its
            place, `math.inf` where it asks for more than there ever is; where allowed, the seconds that
            `acquire` has waited, or 0.
        key: whose permits they are.
        cost: how many permits were asked for; of a decision under a lease, how many were taken here.

    Concurrency: immutable. Of several threads that give back the same one, one does.
    """

    # What a decision costs is mostly making it. So it is a tuple, made of one in one step (a named tuple
    # takes a fifth longer), and what can be worked out from the rest is worked out when asked for. It has no
    # __slots__: a refund leaves a mark on it.

    source: Source = _field(0, "Who decided, and under which quota.")
    allowed: bool = _field(1, "Whether the permits were taken.")
    reset_after: float = _field(2, "Seconds until all permits of the tightest quota are there again.")
    retry_after: float = _field(3, "Where denied, seconds until the same call would be allowed.")
    left: int | None = _field(4, "Permits that are left; None where `reset_after` tells.")
    key: str = _field(5, "Whose permits they are.")
    cost: int = _field(6, "How many permits were asked for.")
    at: float = _field(7, "When it was decided, on the clock of whoever decided.")

    @property
    def limit(self) -> int:
        """The most permits that can be had at once."""
        return self.source.quota.burst

    @property
    def remaining(self) -> int:
        """Permits that are left: whole ones, 0 or more."""
        if self.left is not None:
            return self.left
        quota = self.source.quota
        return max(0, int(quota.burst - self.reset_after * quota.amount / quota.window + ROUNDING))

    @property
    def quota(self) -> str:
        """The name of the quota that is told of: of several, the tightest."""
        return self.source.quota.name

    @property
    def rung(self) -> str:
        """Where it was decided: "shared", "local", "allow" or "deny"."""
        return self.source.rung

    def __bool__(self) -> bool:
        """Tell whether the call is allowed."""
        return self.allowed

    def __eq__(self, other: object) -> bool:
        """Compare by identity: two decisions that look alike are still two."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Compare by identity, as `==`: a tuple's own would compare the fields."""
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        # Without the key: it may be a secret.
        verdict = "allowed" if self.allowed else f"denied for {self.retry_after:.3g} s"
        return f"<Decision {verdict}, {self.remaining} of {self.limit} left, {self.rung}>"

    # What was taken once is given back once: a copy is the same decision, and what travels only tells.

    def __copy__(self) -> Decision:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Decision:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (tuple(self),)


def _restored(fields: tuple[Any, ...]) -> Decision:
    return settled(Decision(fields))


def settled(decision: Decision) -> Decision:
    """Return *decision*, which has nothing to give back from now on."""
    vars(decision)[_MARK] = True
    return decision


def correction(decision: Decision, actual_cost: int, quotas: Collection[Quota]) -> int:
    """Return how many permits to give back, once: the second correction of a decision is 0.

    Refuse one that was not made under *quotas*, these very objects: another limiter has what it took.
    """
    actual = permits("actual_cost", actual_cost, least=0)
    if not isinstance(decision, Decision):
        params.refuse(TypeError, "decision", _RULE, decision)
    if _MARK in vars(decision):
        return 0
    if not any(decision.source.quota is quota for quota in quotas):
        params.refuse(ValueError, "decision", _RULE, decision)
    # `setdefault` is one step: of two threads with the same decision, one corrects it.
    mine = object()
    if not decision.allowed or vars(decision).setdefault(_MARK, mine) is not mine:
        return 0
    return decision.cost - actual


def refusal(policy: str, decision: Decision) -> RateLimitedError:
    """Return what the limiter *policy* raises where it has denied a call by *decision*."""
    wait = decision.retry_after
    when = f"next try in {wait:.3g} s" if wait < math.inf else f"it never has more than {decision.limit}"
    return RateLimitedError(
        f"rate limit {decision.quota!r} is used up: {when}",
        policy=policy,
        retry_after=wait if wait < math.inf else None,
        decision=decision,
    )
