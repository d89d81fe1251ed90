"""What holds for any object that a pool may be given, whatever it is connected to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final, TypeAlias

from ...engine.matching import is_refusal

__all__ = ["Driver", "Steps", "cut", "descriptor_in", "evidence", "has", "is_named", "outcome"]

Steps: TypeAlias = Iterable[Any]
"""What is to be done, one thing after the other.

Each item may be an awaitable. An asynchronous pool awaits it before it takes the next, and sends the result
into it if this is a generator; where there is nothing to await, taking the items is all.
"""

# What says that the other end is gone, or that its answer may still come.
_LOST: Final = (ConnectionError, TimeoutError, EOFError)

# What clients in the standard library and elsewhere call the socket they have.
_SOCKETS: Final = ("sock", "_sock", "_socket")

_MOST_EVIDENCE: Final = 50


class Driver:
    """Knows what to do with one kind of connection. This one does what suits an object of any kind.

    A driver has no state, and no method of it waits or talks to a server by itself: where there is something
    to wait for, it returns the steps. None imports the library it is about.

    Attributes:
        name: what the kind is called in reports.
        transactional: whether what is done on a connection is committed, or rolled back.
        tells: whether `dirty` knows, or has to assume.
        local: whether there is no server that one might have to wait for.
    """

    __slots__ = ()

    name: ClassVar[str] = "generic"
    transactional: ClassVar[bool] = False
    tells: ClassVar[bool] = True
    local: ClassVar[bool] = False

    def note(self, conn: Any) -> None:
        """Remember how a new connection is set, so that `reset` can bring back what a borrower changes."""

    def close(self, conn: Any) -> Steps:
        """Return the steps of an orderly end."""
        for name in ("aclose", "close", "disconnect"):
            if has(conn, name):
                yield getattr(conn, name)()
                return

    def abort(self, conn: Any) -> None:
        """Cut the connection now: the server sees its end, and whoever waits for an answer gets an error.

        The object itself is not touched, since another thread may be inside of it: `close` it when nobody is.

        Concurrency: safe from any thread and any task; never waits.
        """
        cut(lambda: self.fileno(conn))

    def check(self, conn: Any) -> Steps | None:  # noqa: ARG002 - of an object of any kind nothing is known
        """Return the steps that fail if the connection is dead; None if there is no way to find out."""
        return None

    def dirty(self, conn: Any) -> bool:  # noqa: ARG002
        """Tell, at once, whether a connection must be reset before somebody else gets it."""
        return False

    def reset(self, conn: Any) -> Steps:  # noqa: ARG002
        """Return the steps that make it as it was when it was new; if they fail it is good for nothing."""
        return ()

    def commit(self, conn: Any) -> Steps:  # noqa: ARG002
        """Return the steps that commit what was done."""
        return ()

    def rollback(self, conn: Any) -> Steps:  # noqa: ARG002
        """Return the steps that undo what was not committed."""
        return ()

    def broken(self, conn: Any, exc: BaseException) -> bool:
        """Tell whether a connection must not be used again after *exc* came out of the block that used it.

        What came out may have nothing to do with it, or mean that the answer to its last command is still to
        come, which would be taken for the answer to somebody else's.
        """
        at_rest = self.at_rest(conn)
        if at_rest is False:
            return True
        # Cancelled, interrupted, closed: that can be in the middle of anything.
        return any(
            self.fatal(one) or (at_rest is None and not isinstance(one, Exception | BaseExceptionGroup))
            for one in evidence(exc)
        )

    def at_rest(self, conn: Any) -> bool | None:  # noqa: ARG002
        """Tell whether it is between two commands; None if it cannot tell; False also if it is closed."""
        return None

    def fatal(self, exc: BaseException) -> bool:
        """Tell whether *exc* says that the connection it came from is lost."""
        return isinstance(exc, _LOST) or is_named(exc, "SSLError")

    def fileno(self, conn: Any) -> int | None:
        """Return the descriptor of its socket; None if it has none, or none that can be found."""
        return descriptor_in(conn)


def has(conn: Any, name: str) -> bool:
    """Tell whether *conn* has a method *name*, without asking it: there are objects that have any."""
    return callable(getattr(conn.__class__, name, None))


def is_named(exc: BaseException, *names: str) -> bool:
    """Tell whether the class of *exc*, or one it derives from, has one of *names*."""
    return any(kind.__name__ in names for kind in type(exc).__mro__)


def evidence(exc: BaseException) -> Iterator[BaseException]:
    """Return *exc*, what it says it was caused by, and what it is a group of.

    Not what was being handled when it was raised: that may be the failure of an earlier attempt. And none of
    our own refusals, which say nothing.
    """
    found: list[BaseException] = [exc]
    seen: set[int] = set()
    while found and len(seen) < _MOST_EVIDENCE:
        one = found.pop()
        # A chain of causes can be a ring.
        if id(one) in seen or (isinstance(one, Exception) and is_refusal(one)):
            continue
        seen.add(id(one))
        yield one
        if one.__cause__ is not None:
            found.append(one.__cause__)
        if isinstance(one, BaseExceptionGroup):
            found.extend(one.exceptions)


def outcome(made: Any, sent: Any) -> Any:
    """Return what a step came to: *sent* by a pool that awaited it, or else what was *made* at once."""
    return made if sent is None else sent


def descriptor_in(conn: Any) -> int | None:
    """Return the descriptor of *conn*, or of the socket that it keeps; None if there is neither."""
    # Not getattr: what stands for something remote may take it for a call.
    attributes: dict[str, Any] = getattr(conn, "__dict__", None) or {}
    for holder in (conn, *(attributes.get(name) for name in _SOCKETS)):
        if holder is not None and has(holder, "fileno"):
            with suppress(Exception):  # closed; each library says so in its own way
                number = holder.fileno()
                if isinstance(number, int) and number >= 0:
                    return number
    return None


def cut(fileno: Callable[[], int | None]) -> None:
    """Shut down the socket whose descriptor *fileno* returns, for both directions, unless it is closed."""
    number = fileno()
    if number is None:
        return
    with suppress(OSError):  # it is closed by now, not connected any more, or no socket
        # A second descriptor of the same socket. What its family is does not matter here.
        copy = socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM)
        with copy:
            # Had it been closed just before, the number could have come to mean another socket.
            if fileno() == number:
                copy.shutdown(socket.SHUT_RDWR)
