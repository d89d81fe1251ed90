"""Blocks of code that read from a replica, or write to the primary: for `with`, and for `async with`.

The body of a block is run once, whatever happens. What is tried more than once is the way to a connection.
"""

from __future__ import annotations

from typing import Any, Generic

from ...engine.drive.gates import NO_RESULT
from ...engine.waiting import TaskWaiter, ThreadWaiter
from ...errors import RejectedError
from ..blocks import AsyncConnectionBlock, C, ConnectionBlock
from ..borrowed import held_by
from ..members import Errand, Gone, Member
from .nodes import Node
from .routing import Routing, Trip

__all__ = ["AsyncReadBlock", "AsyncWriteBlock", "ReadBlock", "WriteBlock"]

# ruff: noqa: SLF001 - a block is a part of its pool


class _Read(Generic[C]):
    """What both kinds of blocks that read have in common."""

    __slots__ = ("_conn", "_node", "_routing", "_ticket", "_timeout")

    _conn: C
    _node: Any  # its pool is of the kind that the block is for
    _ticket: Any

    def __init__(self, routing: Routing, timeout: float) -> None:
        self._routing = routing
        self._timeout = timeout


class ReadBlock(_Read[C]):
    """A block that holds a connection to read from. Good for one use at a time."""

    __slots__ = ()

    def __enter__(self) -> C:
        node, ticket = self._routing.pick(), None
        if node is not None:
            try:
                ticket = node.admit(None, (), {})
            except RejectedError:  # it was let in until just now
                pass
            else:
                conn: C | None = node.core.take()
                if conn is not None:
                    self._node = node
                    self._ticket = ticket
                    self._conn = conn
                    return conn
        return self._search(Trip(self._routing, self._timeout, node, ticket, ThreadWaiter))

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        node = self._node
        try:
            token = held_by(self._conn).pop()
        except IndexError:  # it was returned in between
            node.gate.abandon(self._ticket, exc)
            if exc is not None:
                return  # which is what matters
            raise node.pool._twice("returned") from None
        finally:
            del self._conn
        if exc is not None:
            node.ended(self._ticket, token, exc)
            node.pool._finish(token, exc)
            return
        if not node.core.put(token):
            member = token.member
            try:
                node.pool._finish(token, None)
            except BaseException as failure:
                _not_committed(node, self._ticket, member, failure)
                raise
        node.gate.success(self._ticket, NO_RESULT)

    def _search(self, trip: Trip) -> C:
        step = trip
        for step in trip:
            try:
                if step.turn is not None:
                    step.wait()
                self._conn = step.pool._checkout(step.seconds)
            except BaseException as exc:
                if not step.goes_on(exc):
                    raise
            else:
                break
        self._node, self._ticket = step.node, step.ticket
        step.arrived()
        return self._conn


class AsyncReadBlock(_Read[C]):
    """A block that holds a connection to read from. Good for one use at a time."""

    __slots__ = ()

    async def __aenter__(self) -> C:
        node, ticket = self._routing.pick(), None
        if node is not None:
            try:
                ticket = node.admit(None, (), {})
            except RejectedError:  # it was let in until just now
                pass
            else:
                pool: Any = node.pool
                pool._settle()
                conn: C | None = node.core.take()
                if conn is not None:
                    self._node = node
                    self._ticket = ticket
                    self._conn = conn
                    return conn
        return await self._search(Trip(self._routing, self._timeout, node, ticket, TaskWaiter))

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        node = self._node
        try:
            token = held_by(self._conn).pop()
        except IndexError:  # it was returned in between
            node.gate.abandon(self._ticket, exc)
            if exc is not None:
                return  # which is what matters
            raise node.pool._twice("returned") from None
        finally:
            del self._conn
        if exc is not None:
            node.ended(self._ticket, token, exc)
            await node.pool._finish(token, exc)
            return
        if not node.core.put(token):
            member = token.member
            try:
                await node.pool._finish(token, None)
            except BaseException as failure:
                _not_committed(node, self._ticket, member, failure)
                raise
        node.gate.success(self._ticket, NO_RESULT)

    async def _search(self, trip: Trip) -> C:
        step = trip
        for step in trip:
            try:
                step.pool._settle()
                if step.turn is not None:
                    await step.await_()
                self._conn = await step.pool._checkout(step.seconds)
            except BaseException as exc:
                if not step.goes_on(exc):
                    raise
            else:
                break
        self._node, self._ticket = step.node, step.ticket
        step.arrived()
        return self._conn


class WriteBlock(ConnectionBlock[C]):
    """A block that holds a connection to the primary. Good for one use at a time."""

    __slots__ = ("_routing",)

    def __init__(self, routing: Routing, timeout: float) -> None:
        pool: Any = routing.primary
        super().__init__(pool, timeout)
        self._routing = routing

    def __enter__(self) -> C:
        conn = super().__enter__()
        self._routing.wrote()  # what it commits in between is to be seen by reads in between
        return conn

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        try:
            super().__exit__(kind, exc, traceback)
        except BaseException as failure:
            self._routing.wrote(failure)
            raise
        self._routing.wrote(exc)


class AsyncWriteBlock(AsyncConnectionBlock[C]):
    """A block that holds a connection to the primary. Good for one use at a time."""

    __slots__ = ("_routing",)

    def __init__(self, routing: Routing, timeout: float) -> None:
        pool: Any = routing.primary
        super().__init__(pool, timeout)
        self._routing = routing

    async def __aenter__(self) -> C:
        conn = await super().__aenter__()
        self._routing.wrote()  # what it commits in between is to be seen by reads in between
        return conn

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        try:
            await super().__aexit__(kind, exc, traceback)
        except BaseException as failure:
            self._routing.wrote(failure)
            raise
        self._routing.wrote(exc)


def _not_committed(node: Node, ticket: Any, member: Member | Gone, failure: BaseException) -> None:
    """Note that a block ended well, and that its connection, of *member*, could not be given back so."""
    # The pool has judged already. To ask again would be to ask of a connection that others see to by now.
    if isinstance(failure, Exception) and isinstance(member, Member) and member.errand is Errand.CLOSE:
        node.blame(ticket, failure)
    else:
        node.gate.abandon(ticket, failure)
