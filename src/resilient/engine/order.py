"""The order of policies: what is known to go wrong, why, and what to move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from ..errors import PipelineOrderError

__all__ = ["RECOMMENDED", "check_order"]

RECOMMENDED: Final = (
    "Fallback",
    "Cache",
    "deadline",
    "Retry",
    "CircuitBreaker",
    "AdaptiveThrottle",
    "RateLimiter",
    "Bulkhead",
    "Timeout",
)
"""The order that works, outermost first."""


class _Placed(Protocol):
    kind: ClassVar[str]

    @property
    def name(self) -> str: ...


_CUT_OFF = (
    "calls that are cut off outside it look abandoned to it, "
    "so it would never see that the dependency is slow"
)
_HIDDEN = "the breaker would see one result for several attempts, and attempts would go on while it is open"

# Outer kind -> inner kind -> what goes wrong.
_MISTAKES: Final[dict[str, dict[str, str]]] = {
    "Cache": {
        "Fallback": "the fallback's value would be stored and served as a good one",
    },
    "Retry": {
        "Fallback": "the fallback answers every failure, so nothing would ever be retried",
    },
    "CircuitBreaker": {
        "Fallback": "the fallback's value would count as a success of the dependency",
        "Fallback.chain": "an answer of another source would count as a success of this one",
        "Cache": "cached answers would count as successes of the dependency",
        "Retry": _HIDDEN,
    },
    "AdaptiveThrottle": {
        "Fallback": "the fallback's value would count as accepted by the dependency",
        "Fallback.chain": "an answer of another source would count as accepted by this one",
        "Cache": "cached answers would count as accepted by the dependency",
        "Retry": "several attempts would count as one, and the dependency would see more than it accepts",
    },
    "RateLimiter": {
        "Retry": "one permit would cover several attempts, and the dependency would see more than the rate",
    },
    "Bulkhead": {
        "Retry": "the slot would be held through the waits between the attempts",
    },
    "Timeout": {
        "CircuitBreaker": _CUT_OFF,
        "AdaptiveThrottle": _CUT_OFF,
    },
}


def check_order(layers: Sequence[_Placed], inside: Sequence[_Placed], target: str) -> None:
    """Refuse to put *layers* around *inside* (both outermost first) where that is known to go wrong.

    What *layers* are to each other is not asked: a pipeline has said so, or was told not to.

    Raises:
        PipelineOrderError: with the reason, and what to move.
    """
    for outer in layers:
        if any(inner is outer for inner in inside):
            raise PipelineOrderError(
                f"{_label(outer)} is on {target} already: a policy applied twice would count every call twice"
            )
    for outer in layers:
        _check_pairs(outer, inside, target)


def _check_pairs(outer: _Placed, inside: Sequence[_Placed], target: str) -> None:
    for position, inner in enumerate(inside):
        reason = _MISTAKES.get(outer.kind, {}).get(inner.kind)
        if reason is not None and not _is_excused(outer, inside[position + 1 :]):
            raise PipelineOrderError(
                f"{_label(outer)} must not be outside {_label(inner)} on {target}: {reason}; "
                f"put {inner.kind} outside {outer.kind} (outermost first: {' > '.join(RECOMMENDED)}), "
                "or say Pipeline(..., order='as-given') if you mean it"
            )


def _label(policy: _Placed) -> str:
    return f"{policy.kind} {policy.name!r}"


def _is_excused(outer: _Placed, within: Sequence[_Placed]) -> bool:
    """Tell whether what is inside sees slowness all the same, by a timeout of its own inside."""
    return outer.kind == "Timeout" and any(policy.kind == "Timeout" for policy in within)
