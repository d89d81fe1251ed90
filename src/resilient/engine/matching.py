"""What counts as a failure: exception types and predicates, judged in one place for every policy."""

from __future__ import annotations

import logging
import math
from typing import Any, Final

import pybreaker

from ..errors import RejectedError
from ..typing import FailureRule, Predicate
from .params import plain_function, refuse

__all__ = ["Matcher", "verdict_of"]

_log = logging.getLogger("resilient")

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
        _log.exception("predicate %r failed; taken as %s", predicate, default)
        return default


class Matcher:
    """A set of exception types and predicates.

    Args:
        parameter: the parameter it comes from, for messages.
        rule: a type, a predicate, or a tuple of both.
        doubtful: the verdict of a predicate that raises.

    Raises:
        TypeError: *rule* holds something that is neither.
        ValueError: a type is not below `Exception`: cancellation and interrupts are never failures.

    Concurrency: immutable.
    """

    __slots__ = ("_doubtful", "predicates", "refusals", "types")

    def __init__(self, parameter: str, rule: FailureRule, *, doubtful: bool = True) -> None:
        self._doubtful = doubtful
        parts = rule if isinstance(rule, tuple | list | set | frozenset) else (rule,)
        self.types = tuple(_checked_type(parameter, part) for part in parts if isinstance(part, type))
        self.predicates: tuple[Predicate, ...] = tuple(
            _checked_predicate(parameter, part) for part in parts if not isinstance(part, type)
        )
        self.refusals = tuple(t for t in self.types if issubclass(t, _REFUSALS))

    def match(self, exc: Exception) -> bool | float:
        """Judge *exc*: no, yes, or yes with a number of seconds."""
        if isinstance(exc, RejectedError):
            return isinstance(exc, self.refusals)
        if isinstance(exc, self.types):
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
