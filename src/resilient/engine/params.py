"""One voice for bad arguments: every message names the parameter, the rule and the value."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, NoReturn

from ..typing import Seconds

__all__ = [
    "callback",
    "count",
    "flag",
    "named",
    "number",
    "one_of",
    "optional_seconds",
    "plain_function",
    "ratio",
    "refuse",
    "seconds",
]


def refuse(error: type[TypeError | ValueError], parameter: str, rule: str, value: object) -> NoReturn:
    """Raise *error* in the one form used everywhere."""
    raise error(f"{parameter} {rule}, got {value!r}")


def number(
    parameter: str,
    value: object,
    *,
    least: float = 0.0,
    above: bool = False,
    infinite: bool = False,
    what: str = "a number",
) -> float:
    """Return *value* as a float that is at least (with *above*: greater than) *least*."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(TypeError, parameter, f"must be {what}", value)
    try:
        plain = float(value)
    except OverflowError:  # a whole number beyond all floats
        plain = math.inf
    if math.isnan(plain) or (math.isinf(plain) and not infinite):
        refuse(ValueError, parameter, f"must be {what} that is finite", value)
    if plain < least or (above and plain == least):
        refuse(ValueError, parameter, f"must be {'greater than' if above else 'at least'} {least:g}", value)
    return plain


def seconds(
    parameter: str, value: object, *, least: float = 0.0, above: bool = False, infinite: bool = False
) -> float:
    """Return a duration in seconds, from a number or a `timedelta`."""
    plain: object = value.total_seconds() if isinstance(value, timedelta) else value
    return number(
        parameter,
        plain,
        least=least,
        above=above,
        infinite=infinite,
        what="a number of seconds or a timedelta",
    )


def optional_seconds(parameter: str, value: Seconds | None, *, above: bool = True) -> float | None:
    """Return a duration in seconds, or None where the user said None."""
    return None if value is None else seconds(parameter, value, above=above)


def ratio(parameter: str, value: object, *, zero: bool = False) -> float:
    """Return a share between 0 and 1; 0 itself only where *zero* says so."""
    share = number(parameter, value, above=not zero, what="a ratio")
    if share > 1.0:
        refuse(ValueError, parameter, "must be at most 1", value)
    return share


def count(parameter: str, value: object, *, least: int = 1) -> int:
    """Return a whole number of at least *least*."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(TypeError, parameter, "must be a whole number", value)
    if value < least:
        refuse(ValueError, parameter, f"must be at least {least}", value)
    return value


def flag(parameter: str, value: object) -> bool:
    """Return a bool; nothing that is merely truthy will do."""
    if not isinstance(value, bool):
        refuse(TypeError, parameter, "must be True or False", value)
    return value


def named(parameter: str, value: object) -> str:
    """Return a name: text with something in it."""
    if not isinstance(value, str):
        refuse(TypeError, parameter, "must be text", value)
    if not value.strip():
        refuse(ValueError, parameter, "must not be empty", value)
    return value


def one_of(parameter: str, value: object, words: Collection[str]) -> str:
    """Return *value* if it is one of *words*."""
    if not isinstance(value, str):
        refuse(TypeError, parameter, "must be text", value)
    if value not in words:
        refuse(ValueError, parameter, f"must be one of {', '.join(map(repr, words))}", value)
    return value


def callback(parameter: str, value: Callable[..., Any]) -> Callable[..., Any]:
    """Return *value* if it can be called."""
    if not callable(value):
        refuse(TypeError, parameter, "must be callable", value)
    return value


def plain_function(parameter: str, value: Callable[..., Any], *, classes: bool = False) -> Callable[..., Any]:
    """Return *value* if a call of it gives a plain answer.

    The coroutine that an asynchronous one returns would count as a yes. So would the instance that comes from
    the class of a strategy, given by mistake; *classes* lets `bool` and the like pass.
    """
    callback(parameter, value)
    if isinstance(value, type) and not classes:
        refuse(TypeError, parameter, "must be an instance or a function, not a class", value)
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004
        refuse(TypeError, parameter, "must be an ordinary function, not a coroutine function", value)
    return value
