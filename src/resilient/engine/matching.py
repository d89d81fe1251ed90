"""What counts as a failure: exception types and predicates, judged in one place for every policy."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Final, TypeGuard

import pybreaker

from ..errors import RejectedError
from ..events import error_text, log_fault
from ..typing import FailureRule, Predicate
from .params import plain_function, refuse

__all__ = ["Matcher", "is_one", "is_refusal", "parts_of", "verdict_of"]

# Our refusals say nothing about a dependency, so naming `Exception` does not mean them. A rule means them
# only if it names one of these or a class below.
_REFUSALS: Final = (RejectedError, pybreaker.CircuitBreakerError)


def verdict_of(predicate: Predicate, subject: object, default: bool) -> bool | float:
    """Ask a user's *predicate*; answer *default* where it fails, and log that.

    A number greater than 0 is returned as it is (seconds); any other answer as its truth.
    """
    try:
        answer = predicate(subject)
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            return float(answer) if 0.0 < answer < math.inf else bool(answer)
        return bool(answer)
    except Exception:  # noqa: BLE001 - the user's code, in the middle of handling a failure
        log_fault("predicate %r failed; taken as %s", predicate, default)
        return default


def is_one(exc: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Tell whether *exc* is of one of *kinds*, even if it or one of them will not say."""
    try:
        return isinstance(exc, kinds)
    except Exception:  # noqa: BLE001 - a `__class__` or a metaclass of the user's, in the middle of a failure
        log_fault("%s does not say what it is; its own type decides", error_text(exc))
        return any(kind in type.mro(type(exc)) for kind in kinds)


def is_refusal(exc: Exception) -> TypeGuard[RejectedError]:
    """Tell whether *exc* is one of our refusals, without asking it."""
    return issubclass(type(exc), RejectedError)


def parts_of(rule: Any) -> tuple[Any, ...]:
    """Return the types and predicates that *rule* holds: itself, if it is one."""
    if isinstance(rule, Collection) and not isinstance(rule, str) and not callable(rule):
        return tuple(rule)
    return (rule,)


class Matcher:
    """A set of exception types and predicates.

    Args:
        parameter: the parameter it comes from, for messages.
        rule: a type, a predicate, or several of both.
        doubtful: the verdict of a predicate that raises.
        required: whether it must name anything.

    Raises:
        TypeError: *rule* holds something that is neither.
        ValueError: a type is not below `Exception`: cancellation and interrupts are never failures. Or *rule*
            is empty, and something is *required*.

    Concurrency: immutable.
    """

    __slots__ = ("_doubtful", "predicates", "refusals", "types")

    def __init__(
        self, parameter: str, rule: FailureRule, *, doubtful: bool = True, required: bool = False
    ) -> None:
        self._doubtful = doubtful
        parts = parts_of(rule)
        if required and not parts:
            refuse(ValueError, parameter, "must name at least one type or predicate", rule)
        self.types = tuple(_checked_type(parameter, part) for part in parts if isinstance(part, type))
        self.predicates: tuple[Predicate, ...] = tuple(
            _checked_predicate(parameter, part) for part in parts if not isinstance(part, type)
        )
        self.refusals = tuple(t for t in self.types if issubclass(t, _REFUSALS))

    def match(self, exc: Exception) -> bool | float:
        """Judge *exc*: no, yes, or yes with a number of seconds."""
        if is_refusal(exc):
            return is_one(exc, self.refusals)
        if is_one(exc, self.types):
            return True
        for predicate in self.predicates:
            if verdict := verdict_of(predicate, exc, default=self._doubtful):
                return verdict
        return False


def _checked_type(parameter: str, part: Any) -> type[Exception]:
    if not issubclass(part, Exception):
        rule = "must name types below Exception (a call that is cancelled is abandoned, not failed)"
        refuse(ValueError if issubclass(part, BaseException) else TypeError, parameter, rule, part)
    checked: type[Exception] = part
    return checked


def _checked_predicate(parameter: str, part: Any) -> Predicate:
    if not callable(part):
        refuse(TypeError, parameter, "must be an exception type, a predicate, or a tuple of these", part)
    return plain_function(parameter, part)
