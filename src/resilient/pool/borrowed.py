"""What a borrower gets: a stand-in for the connection, good until it is returned.

It forwards whatever is asked of it, and says what the connection is when asked what it is. When the
connection has been returned, or taken away, it says that instead. And when it is forgotten, its end is the
end of the token in it, which the pool notices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from ..errors import ConnectionReturnedError
from .members import Fence, Token

__all__ = ["Borrowed", "bare", "held_by", "hold", "is_borrowed", "stand_in_for"]

# What belongs to the stand-in itself: how it is made, kept and found; the rest is the connection's.
_OWN: Final = frozenset(
    {
        "__class__",
        "__class_getitem__",
        "__del__",
        "__delattr__",
        "__dict__",
        "__dir__",
        "__doc__",
        "__eq__",
        "__getattr__",
        "__getattribute__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__getstate__",
        "__hash__",
        "__init__",
        "__init_subclass__",
        "__module__",
        "__ne__",
        "__new__",
        "__reduce__",
        "__reduce_ex__",
        "__repr__",
        "__setattr__",
        "__setstate__",
        "__sizeof__",
        "__slots__",
        "__str__",
        "__subclasshook__",
        "__weakref__",
    }
)


class Borrowed:
    """Stands in for a connection for as long as it is lent."""

    __slots__ = ("__weakref__", "_resilient_held")

    # A list, because taking the token out of it is one step: who returns a connection twice finds none.
    _resilient_held: list[Token]

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Whoever looks through all objects there are asks this of one that was returned, too.
        held = held_by(self)
        kind = type(held[0].conn) if held else Fence
        return type(self) if kind is Fence else kind

    def __getattr__(self, name: str) -> Any:
        try:
            token = self._resilient_held[0]
        except IndexError:
            raise _returned(f"used (.{name})") from None
        return getattr(token.conn, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_connection_of(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_connection_of(self), name)

    def __dir__(self) -> list[str]:
        return dir(_connection_of(self))

    def __repr__(self) -> str:
        held = held_by(self)
        if not held:
            return "<a connection that was returned>"
        conn = held[0].conn
        return "<a connection that was taken away>" if type(conn) is Fence else f"<borrowed {conn!r}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a borrowed connection cannot be pickled or copied: it belongs to its borrower")


def stand_in_for(kind: type) -> type[Borrowed]:
    """Return the class of stand-ins for connections of *kind*."""
    return _classes.get(kind) or _class_for(kind)


def is_borrowed(conn: object) -> bool:
    """Tell whether *conn* is a stand-in, and not a connection itself."""
    return issubclass(type(conn), Borrowed)


def _connection_of(borrowed: Borrowed) -> Any:
    held = held_by(borrowed)
    if not held:
        raise _returned("used")
    return held[0].conn


def _returned(what: str) -> ConnectionReturnedError:
    return ConnectionReturnedError(f"a connection was {what} after it had been returned to its pool")


# How one is made, filled and looked into: through the descriptor, for what is asked of the stand-in itself
# goes to the connection.
bare: Final = object.__new__
held_by: Final[Callable[[Any], list[Token]]] = Borrowed.__dict__["_resilient_held"].__get__
hold: Final[Callable[[Any, list[Token]], None]] = Borrowed.__dict__["_resilient_held"].__set__

# Weakly: a mock, for one, makes a class for each object.
_classes: Final[WeakKeyDictionary[type, type[Borrowed]]] = WeakKeyDictionary()


def _class_for(kind: type) -> type[Borrowed]:
    """Make the stand-ins' class for connections of *kind*.

    `with conn`, `conn[key]`, `await conn` and the like look for their methods in the class, so it has those
    that the connection's class has.
    """
    special = {
        name: _forwarder(name)
        for name in dir(kind)
        if name.startswith("__")
        and name.endswith("__")
        and name not in _OWN
        and callable(getattr(kind, name, None))
    }
    made = type(f"Borrowed[{kind.__name__}]", (Borrowed,), {"__slots__": (), **special})
    _classes[kind] = made
    return made


def _forwarder(name: str) -> Callable[..., Any]:
    def forward(self: Borrowed, *args: Any, **kwargs: Any) -> Any:
        conn = _connection_of(self)
        answer = getattr(conn, name)(*args, **kwargs)
        return self if answer is conn else answer

    async def aforward(self: Borrowed, *args: Any, **kwargs: Any) -> Any:
        conn = _connection_of(self)
        answer = await getattr(conn, name)(*args, **kwargs)
        return self if answer is conn else answer

    # `with conn as inner` would hand out what is behind the stand-in.
    forwarder = aforward if name == "__aenter__" else forward
    forwarder.__name__ = name
    return forwarder
