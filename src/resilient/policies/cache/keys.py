"""The keys of calls, and which functions may share one cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any, Final, cast

from ...engine.policy import callee_of

__all__ = ["hands_on", "is_same", "key_maker", "normal"]

_KEYWORDS: Final = object()  # stands between positional arguments and keywords in a key


def key_maker(make: Callable[..., Hashable] | None, fn: Callable[..., Any]) -> Callable[[Any, Any], Hashable]:
    """Return what makes a key of the arguments of a call of *fn*: the user's *make*, if there is one."""
    if make is None:
        return _key_of
    first = 1 if hands_on(fn) else 0  # the user is asked about the arguments of the callee

    def made_key(args: Any, kwargs: Any) -> Hashable:
        return normal(make(*args[first:], **kwargs))

    return made_key


def normal(key: Hashable) -> Hashable:
    """Return the key that a bare value `k` is short for."""
    return cast("Hashable", key) if isinstance(key, tuple) else (key,)


def hands_on(fn: Callable[..., Any]) -> bool:
    """Tell whether *fn* calls what it is given, for `call` and `acall`: then the callee is in the key."""
    callee, _ = callee_of(_origin(fn), (None,))
    return callee is None


def is_same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tell whether two callables are one, or one definition that was executed again, as by a reload."""
    if one == other:
        return True
    name = _definition(one)
    return name is not None and name == _definition(other)


def _key_of(args: Any, kwargs: Any) -> Hashable:
    return (*args, _KEYWORDS, *sorted(kwargs.items())) if kwargs else args


def _definition(fn: Any) -> tuple[str, str] | None:
    """Return where *fn* is defined, if there is but one function there: not a closure, method or lambda."""
    fn = _origin(fn)
    if not isinstance(fn, FunctionType) or "<" in fn.__qualname__:
        return None
    return fn.__module__, fn.__qualname__


def _origin(fn: Any) -> Any:
    while isinstance(fn, FunctionType) and "__wrapped__" in vars(fn):
        fn = vars(fn)["__wrapped__"]
    return fn
