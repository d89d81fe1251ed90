"""The order of policies: what is known to go wrong, why, and what to move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ..errors import PipelineOrderError

__all__ = ["RECOMMENDED", "check_order"]

RECOMMENDED: Final = ("Fallback", "Cache", "deadline", "Retry", "CircuitBreaker", "Timeout")
"""The order that works, outermost first."""


class _Placed(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...


# (outer, inner) -> what goes wrong.
_MISTAKES: Final = {
    ("Cache", "Fallback"): "the fallback's value would be stored and served as a good one",
    ("CircuitBreaker", "Fallback"): "the fallback's value would count as a success of the dependency",
    ("Retry", "Fallback"): "the fallback answers every failure, so nothing would ever be retried",
    ("CircuitBreaker", "Cache"): "cached answers would count as successes of the dependency",
    ("CircuitBreaker", "Retry"): "the breaker would see one result for several attempts, and retries would go on while it is open",
    ("Timeout", "CircuitBreaker"): "calls that are cut off outside the breaker look abandoned to it, so it would never see that the dependency is slow",
}


def check_order(outer: _Placed, inside: Sequence[_Placed], target: str) -> None:
    """Refuse to put *outer* around *inside* (outermost first) where that is known to go wrong.

    Raises:
        PipelineOrderError: with the reason, and what to move.
    """
    for position, inner in enumerate(inside):
        if inner is outer:
            msg = f"{outer.kind} {outer.name!r} is on {target} already: a policy applied twice would count every call twice"
            raise PipelineOrderError(msg)
        reason = _MISTAKES.get((outer.kind, inner.kind))
        if reason is None or _is_excused(outer, inside[position + 1 :]):
            continue
        msg = (
            f"{outer.kind} {outer.name!r} must not be outside {inner.kind} {inner.name!r} on {target}: {reason}; "
            f"put {inner.kind} outside {outer.kind} (outermost first: {' > '.join(RECOMMENDED)}), "
            "or say Pipeline(..., order='as-given') if you mean it"
        )
        raise PipelineOrderError(msg)


def _is_excused(outer: _Placed, within: Sequence[_Placed]) -> bool:
    """A timeout around a breaker hides nothing if the breaker has a timeout of its own inside."""
    return outer.kind == "Timeout" and any(policy.kind == "Timeout" for policy in within)
