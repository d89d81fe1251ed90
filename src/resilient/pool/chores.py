"""How each chore is done, whoever does it: a thread, or a task.

A chore is a generator that yields what it has called. Where that may be an awaitable, whoever drives the
generator awaits it, and sends the result back: so there is one form of each for both worlds.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from ..engine.window import HAS_GIL
from ..events import error_text
from .core import Core
from .handling import through
from .members import Chore, Errand, Fence, Gone, Member, Token

__all__ = ["Doing", "adrive", "begin", "drive"]

Doing: TypeAlias = Generator[Any, Any, None]


class _StillInUseError(Exception):
    """A connection was given up, but not all that was made of it."""


def begin(core: Core, chore: Chore, connect: Callable[[], Any]) -> Doing:
    """Return *chore*, to be driven."""
    token = chore.token
    match chore.errand:
        case Errand.CONNECT:
            return _connect(core, token, connect)
        case Errand.CHECK:
            return _mend(core, token, core.handling.check)
        case Errand.RESET:
            return _mend(core, token, core.handling.reset)
        case Errand.CLOSE:
            return _close(core, token)
        case Errand.CUT:
            return _cut(core, token)


def drive(doing: Doing) -> None:
    """Do a chore in this thread."""
    answer = None
    with suppress(StopIteration):
        while True:
            answer = doing.send(answer)
            if inspect.iscoroutine(answer):
                answer.close()  # or Python would warn that it was never awaited
                answer = doing.throw(TypeError("a coroutine function needs an AsyncConnectionPool"))


async def adrive(doing: Doing, limit: float | None = None) -> None:
    """Do a chore in this task, within *limit* seconds (None: it takes as long as it takes)."""
    until = None if limit is None else asyncio.get_running_loop().time() + limit
    answer: Any = None
    failure: BaseException | None = None
    try:
        while True:
            try:
                step = doing.send(answer) if failure is None else doing.throw(failure)
            except StopIteration:
                return
            answer = failure = None
            try:
                if inspect.isawaitable(step):
                    async with asyncio.timeout_at(until):
                        answer = await step
                else:
                    answer = step
            except BaseException as exc:  # noqa: BLE001 - it is raised where the step was made
                failure = exc
                if limit is not None and isinstance(exc, asyncio.CancelledError) and not _is_cancelled():
                    failure = RuntimeError("something it waited for was cancelled")
            del step
    finally:
        # Or it and this frame would keep each other alive, and the token, which is to be seen to be lost.
        del answer, failure


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _connect(core: Core, token: Token, connect: Callable[[], Any]) -> Doing:
    if isinstance(token.member, Gone):
        return  # it has waited for its turn for too long
    clock = core.rules.clock
    began = clock()
    conn: Any = None
    try:
        conn = yield connect()
        references = sys.getrefcount(conn)
        # How many of these it has for being looked at: as many as something to which nobody else refers.
        control = yield _Control()
        references -= sys.getrefcount(control)
        del control
        core.meet(conn)
        yield from through(core.handling.settle(conn))
    except BaseException as exc:
        core.change(core.stock.connect_failed, token, error_text(exc))
        if conn is not None:
            with suppress(Exception):
                yield from through(core.handling.close(conn))
        if not isinstance(exc, Exception):
            raise
    else:
        core.change(core.stock.connected, token, conn, clock() - began, references)


def _mend(core: Core, token: Token, act: Callable[[Any], Iterable[Any]]) -> Doing:
    try:
        if isinstance(token.member, Member) and token.member.orphan and _is_in_use(token, token.member):
            raise _StillInUseError("something made of it is still in use")  # noqa: TRY301
        yield from through(act(token.conn))
    except BaseException as exc:
        core.change(core.stock.mended, token, exc)
        if not isinstance(exc, Exception):
            raise
    else:
        core.change(core.stock.mended, token, None)


class _Control:
    """Something to which nobody else refers."""


def _is_in_use(token: Token, member: Member) -> bool:
    """Tell whether somebody has a cursor, a method or the like of a connection that was given up."""
    # Without a global lock the numbers of references are not to be relied on.
    return not HAS_GIL or _references(token) - _WHEN_UNUSED > member.references


def _references(token: Token) -> int:
    return sys.getrefcount(token.conn)


def _when_unused() -> int:
    """Return how many references there are to a connection that a token and its member have."""
    member = Member(None, 0.0)
    token = Token(member)
    token.conn = member.conn = _Control()
    return _references(token)


_WHEN_UNUSED: Final = _when_unused()


def _close(core: Core, token: Token) -> Doing:
    # Unless it was taken away from us before we began: then it is closed when nobody uses it. And when we are
    # cancelled in the middle, the token is lost, and what became of it is not said: somebody closes it again.
    if type(token.conn) is not Fence:
        try:
            yield from through(core.handling.close(token.conn))
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:  # noqa: BLE001, S110 - it is given up, however it takes that
            pass
    core.change(core.stock.was_closed, token)


def _cut(core: Core, token: Token) -> Doing:
    with suppress(Exception):
        core.handling.abort(token.conn)
    yield from ()
