"""What a retry repeats: failures and results, judged by rules of ours or by a tenacity strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from tenacity import Future as Outcome
from tenacity import RetryCallState
from tenacity.asyncio.retry import async_retry_base
from tenacity.retry import (
    retry_all,
    retry_any,
    retry_base,
    retry_if_exception,
    retry_if_exception_cause_type,
    retry_if_exception_type,
)

from ..engine import params
from ..engine.matching import Matcher, is_one, is_refusal, parts_of, verdict_of
from ..errors import RejectedError
from ..typing import FailureRule, Predicate

__all__ = ["Judge"]

Verdict = bool | float
"""No, yes, or yes with the seconds to wait."""


class Judge:
    """Tells what is worth another attempt.

    Args:
        on: types, predicates, a tuple of both, or a tenacity `retry_*` strategy.
        on_result: a predicate for results; None where results are no matter of this rule.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a type is not below `Exception`, or there is nothing to retry.

    Concurrency: immutable.
    """

    def __init__(self, on: FailureRule | retry_base, on_result: Predicate | None) -> None:
        self._strategy = on if isinstance(on, retry_base) else None
        self._matcher = (
            None
            if isinstance(on, retry_base)
            else Matcher("on", _without_strategies(on), required=on_result is None)
        )
        self._refusals = tuple(_refusals_named_by(self._strategy))
        self._on_result = (
            None if on_result is None else params.plain_function("on_result", on_result, classes=True)
        )
        self.refuses = self._first_look()

    def exception(self, exc: Exception, state: RetryCallState) -> Verdict:
        """Judge the failure that *state* holds."""
        if self._matcher is not None:
            return self._matcher.match(exc)
        if is_refusal(exc) and not is_one(exc, self._refusals):
            return False
        return self._ask_strategy(state)

    def result(self, result: Any, state: RetryCallState) -> Verdict:
        """Judge the result that *state* holds."""
        if self._on_result is not None and (verdict := verdict_of(self._on_result, result, default=False)):
            return verdict
        return self._strategy is not None and self._ask_strategy(state)

    def _first_look(self) -> Callable[[Any], Verdict] | None:
        """Return what judges the result of a first attempt, for which there is no state yet."""
        if self._strategy is not None and not _is_about_exceptions_only(self._strategy):
            return self._judge_without_state
        if self._on_result is not None:
            return functools.partial(verdict_of, self._on_result, default=False)
        return None

    def _judge_without_state(self, result: Any) -> Verdict:
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # a strategy looks at the outcome
        state.outcome = Outcome.construct(1, result, has_exception=False)
        return self.result(result, state)

    def _ask_strategy(self, state: RetryCallState) -> bool:
        return bool(verdict_of(self._strategy, state, default=False))  # type: ignore[arg-type]  # checked by callers


def _without_strategies(on: Any) -> Any:
    for part in parts_of(on):
        if isinstance(part, retry_base):  # as a predicate it would be given the exception, and fail
            params.refuse(TypeError, "on", "must hold no tenacity strategies: mix those with |", on)
    return on


def _parts(strategy: Any) -> Iterator[Any]:
    """Yield what *strategy* is mixed from, down to those that are no mixes."""
    if isinstance(strategy, async_retry_base):
        params.refuse(TypeError, "on", "must not be one of tenacity's asynchronous strategies", strategy)
    if isinstance(strategy, retry_any | retry_all):
        for part in strategy.retries:
            yield from _parts(part)
    else:
        yield strategy


def _refusals_named_by(strategy: retry_base | None) -> Iterator[type[RejectedError]]:
    """Yield the refusals that *strategy* names: a strategy about `Exception` does not mean them."""
    for part in _parts(strategy):
        if isinstance(part, retry_if_exception_type):
            named = part.exception_types
            for kind in named if isinstance(named, tuple) else (named,):
                if issubclass(kind, RejectedError):
                    yield kind


def _is_about_exceptions_only(strategy: retry_base) -> bool:
    """Whether *strategy* lets every result pass, so that results need not be shown to it."""
    # By the method and not by the class: below `retry_if_exception` are some that repeat on every result.
    return all(
        type(part).__call__ in {retry_if_exception.__call__, retry_if_exception_cause_type.__call__}
        for part in _parts(strategy)
    )
