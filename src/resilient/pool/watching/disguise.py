"""Methods put over those of one object, and taken off again.

The object's class is replaced by a subclass of it, of the same name. Attributes of the instance would do for
some, but not for those with slots, and each would be a reference cycle: a pool that cleans up when its last
reference goes would be left to the garbage collector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

__all__ = ["Disguise", "Hook", "mark_of", "take_off"]

Hook: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Given the function that is there, return the one to have in its place. Both take the object first."""

_MARK: Final = "__resilient_watched__"


def mark_of(target: object) -> Any:
    """Return the mark of the disguise that *target* is in; None if it is in none."""
    return getattr(type(target), _MARK, None)


class Disguise:
    """A subclass of *kind* with *hooks* over its methods, for any number of objects.

    Whoever is in it keeps *mark* alive.

    Raises:
        TypeError: *kind* has no such methods: it is of a version that is not known here.
    """

    def __init__(self, kind: Any, hooks: Mapping[str, Hook], mark: object) -> None:
        if missing := [name for name in hooks if not hasattr(kind, name)]:
            raise TypeError(
                f"{kind.__module__}.{kind.__qualname__} cannot be watched: this version of it has no "
                f"{', '.join(missing)}"
            )
        attributes: dict[str, Any] = {
            "__slots__": (),
            "__doc__": kind.__doc__,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            _MARK: mark,
        }
        for name, hook in hooks.items():
            original = getattr(kind, name)
            attributes[name] = functools.wraps(original)(hook(original))
        self._hooks = hooks
        self.kind: Any = type(kind)(kind.__name__, (kind,), attributes)

    def put_on(self, target: Any) -> None:
        """Put it on *target*, which is of the class it was made for.

        Raises:
            TypeError: it is not, or its class cannot be replaced.
        """
        if type(target) is not self.kind.__bases__[0]:
            raise TypeError(f"{target!r} is of another class than {self.kind.__qualname__}")
        target.__class__ = self.kind
        for name, method in _own(target, self._hooks).items():
            _put_over_own(target, name, method, self._hooks[name])


def take_off(target: Any) -> None:
    """Take off what *target* is in; what others have put over it since stays."""
    kind = type(target)
    if _MARK not in vars(kind):
        return
    for name, method in _own(target, vars(kind)).items():
        if isinstance(method, _OverOwn):
            setattr(target, name, method.original)
    target.__class__ = kind.__bases__[0]


class _OverOwn(functools.partial[Any]):
    """A hook over a method that the object had for itself, put there by somebody else."""

    original: Any


def _put_over_own(target: Any, name: str, original: Callable[..., Any], hook: Hook) -> None:
    def without_self(_self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    over = _OverOwn(hook(without_self), target)
    over.original = original
    setattr(target, name, over)


def _own(target: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return which of *names* the object has for itself; one with slots has none."""
    own: dict[str, Any] = getattr(target, "__dict__", {})
    return {name: own[name] for name in names if name in own}
