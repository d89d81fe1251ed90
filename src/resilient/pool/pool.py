"""The pool for threads."""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, Final, Self, cast

from ..engine import params
from ..engine.shape import Shape
from ..engine.waiting import ThreadWaiter, spells
from ..typing import P, Seconds, T
from . import chores, rounds
from .blocks import ConnectionBlock
from .core import Core
from .crews import LastCrew, ThreadCrew
from .decorating import lending
from .front import C, Front
from .handling import Act, through
from .line import Watch
from .members import Errand, Token

__all__ = ["ConnectionPool"]


class ConnectionPool(Front[C, C]):
    """Lend connections to threads, and have every one of them back.

    A connection that comes free goes to whoever has waited longest. Connecting, checking, resetting and
    closing are done in threads of the pool's own, so that a caller gets a connection or an error in time,
    whatever the server does. Nothing is connected before the first caller, or `wait`.

    What a borrower gets stands for the connection until it is returned: used later it raises, and forgotten
    it goes back to the pool.

    Args:
        connect: returns a new connection.
        name: in errors, events, reports and statistics.
        close: closes a connection. None: as its kind asks for.
        check: raises if a connection is dead. None: as its kind asks for, if that is known.
        reset: has a connection as new, each time it was returned; raises if that cannot be. None: what a
            borrower may leave behind, such as an open transaction, is undone where the kind is known.
        broken: failures after which a connection is not used again, beside those that its kind is known for:
            exception types, predicates, or a tuple of both.
        min_size: how many connections are kept open; 0 or more, at most *max_size*.
        max_size: the most connections there are at any moment, in whatever state; at least 1.
        timeout: seconds a caller waits for a connection, 0 or more; its deadline, if that is earlier, counts
            instead. 0: only what is free is lent.
        max_waiting: the most callers that wait, 0 or more. None: a hundred for each connection.
        max_idle: seconds after which a connection that nobody uses is closed, above 0; those of *min_size*
            stay.
        max_lifetime: seconds after which a connection is replaced, above 0; one that is lent when it is back.
        jitter: by how large a share, from 0 to 1, each lifetime is shortened, at random, so that they do not
            end together.
        check_after_idle: a connection that nobody has used for so many seconds is checked before it is lent,
            0 or more. 0: each time.
        check_every: seconds after which an idle connection is checked though nobody asks, above 0. None:
            never.
        check_timeout: seconds a check, a reset or closing may take, above 0.
        connect_timeout: seconds after which an attempt to connect counts as failed, above 0. None: *timeout*,
            and at least 1.
        max_connecting: the most connections that are being made at a time, so that a spike of callers is none
            of connections; at least 1. While connecting fails, it is one.
        commit: leaving the block of `connection` commits what was done on it; left by an exception, it is
            rolled back. False: it is always rolled back; whoever wants it to last commits. Where there are no
            transactions it means nothing.
        leak_after: seconds after which a borrower is reported, once, above 0. None: never.
        on_leak: "report"; or "reclaim": what is held for *max_hold* seconds is taken away and closed.
        max_hold: as said, above 0. Goes with "reclaim".
        full_stacks: keep the whole stack of each borrower, not only the innermost frames.
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any thread. While nobody waits, lending takes no lock. A connection whose borrower
    is gone, interrupted or forgotten, comes back. A forked child begins with none of the parent's.

    Source: HikariCP for what a pool owes its callers; Finagle's FailFastFactory for servers that are down.
    """

    kind: ClassVar[str] = "ConnectionPool"

    def connection(self, timeout: Seconds | None = None) -> ConnectionBlock[C]:
        """Return a block, for `with`, that holds a connection.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the pool's.

        Returns:
            A context manager; entering it does what `getconn` does, leaving it what `putconn` does, and with
            `commit` what that says.

        Raises:
            TypeError: *timeout* has the wrong type.
            ValueError: *timeout* is out of range.
        """
        return ConnectionBlock(self, self._checked(timeout))

    def getconn(self, timeout: Seconds | None = None) -> C:
        """Borrow a connection; `putconn` gives it back.

        Args:
            timeout: seconds to wait for one, 0 or more. None: the pool's.

        Returns:
            What stands for the connection, until it is returned.

        Raises:
            PoolTimeoutError: none came free in time; the message says who has them.
            PoolUnavailableError: there is none, and the server is known to be down.
            PoolFullError: there is none, and too many wait already.
            PoolClosedError: the pool is closed.
        """
        seconds = self._checked(timeout)
        conn = self._core.take()
        return cast("C", self._checkout(seconds) if conn is None else conn)

    def putconn(self, conn: C) -> None:
        """Give a connection back; what was not committed is rolled back.

        Args:
            conn: what `getconn` returned.

        Raises:
            TypeError: *conn* was not borrowed from a pool.
            ValueError: it was borrowed from another one.
            ConnectionReturnedError: it was returned already.
            ConnectionReclaimedError: it was taken away before.

        Concurrency: waits until an open transaction has been rolled back, for `check_timeout` at most.
        """
        token = self._token_of(conn)
        if not self._core.put(token):
            self._finish(token, None, well=False)

    def __call__(self, fn: Callable[Concatenate[C, P], T], /) -> Callable[P, T]:
        """Return *fn*, which is given a connection for each call, as its first argument.

        Args:
            fn: a function or generator function. If its first parameter is called `self` or `cls`, the
                connection is the second.

        Returns:
            A function without that parameter.

        Raises:
            TypeError: *fn* is asynchronous, or cannot be called.
        """
        return lending(self, fn, (Shape.FUNCTION, Shape.GENERATOR))

    def wait(self, timeout: Seconds = 30.0) -> None:
        """Wait until there are as many connections as `min_size` says, and at least one.

        Args:
            timeout: seconds, 0 or more.

        Raises:
            PoolTimeoutError: there were not, in time; the message says why.
            PoolClosedError: the pool is closed.
        """
        core = self._core
        watch = core.filling(ThreadWaiter(), seconds := params.seconds("timeout", timeout))
        self._attend()
        if not self._wait_for(watch) or self.closed:
            raise core.not_filled(seconds)

    def close(self, drain: Seconds = 5.0) -> None:
        """Lend nothing any more, wait for what is lent, and then cut it.

        Args:
            drain: seconds to wait, 0 or more.

        Concurrency: safe from any thread, any number of times. Those that wait for a connection get a
            `PoolClosedError`, those that have one a `ConnectionReclaimedError` when it was cut.
        """
        core = self._core
        watch = core.emptying(ThreadWaiter(), params.seconds("drain", drain))
        core.shut()
        try:
            drained = self._wait_for(watch)
        except BaseException:
            core.cut()  # whoever closes it has no more time
            raise
        if not drained:
            core.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make_crew(self, connect: Callable[[], Any], name: str, max_size: int) -> ThreadCrew:
        params.plain_function("connect", connect, classes=True)
        return ThreadCrew(name, connect, max_size)

    def _act(self, parameter: str, act: Act | None) -> Act | None:
        return None if act is None else params.plain_function(parameter, act)

    def _checkout(self, seconds: float | None) -> Any:
        core = self._core
        self._attend()
        found = core.begin(seconds, ThreadWaiter)
        if isinstance(found, Token):
            return core.lend_at_last(found)
        return core.lend_at_last(core.wait(found), found.since)

    def _finish(self, token: Token, exc: BaseException | None, *, well: bool = True) -> None:
        """Have a connection back that takes more than to be put down."""
        core, member = self._core, token.member
        if type(exc) is GeneratorExit and core.is_at_rest(token):
            # The block is in a generator, and was left at a `yield`. Who drops a generator waits for nothing.
            core.give_back(token)
            return
        steps = core.ending(token, exc, well=well)
        if steps is not None:
            try:
                chores.drive(through(steps))
            except BaseException as failure:
                core.give_back(token, failure)
                # What cannot be committed is told; what cannot be undone is gone with its connection.
                if (well and exc is None) or not isinstance(failure, Exception):
                    raise
                return
        core.give_back(token, exc)
        watch = core.undoing(member, exc, ThreadWaiter, well=well)
        if watch is not None:
            self._wait_for(watch)

    def _attend(self) -> None:
        if not self._is_attended:
            rounds.attend(self._core)
            _open.add(weakref.ref(self._core, _open.discard))
            self._is_attended = True  # last: twice does no harm, and an interrupt before it would

    def _wait_for(self, watch: Watch) -> bool:
        core = self._core
        try:
            for seconds in spells(watch, core.stock.lock, core.now, core.round):
                cast("ThreadWaiter", watch.waiter).park(seconds)
        finally:
            core.unwatch(watch)
        return watch.decided

    _is_attended = False


_FAREWELL: Final = 2.0  # seconds that the end of the interpreter waits for connections to be closed
_GLANCE: Final = 0.005

# Not a WeakSet: that runs Python code when one of them dies, in which an interrupt would be lost.
_open: Final[set[weakref.ref[Core]]] = set()


@atexit.register
def _close_all() -> None:
    """Say goodbye to servers when the interpreter ends; of what is lent, that of the process is the end."""
    until = time.monotonic() + _FAREWELL
    cores = [core for core in (reference() for reference in [*_open]) if core is not None]
    for core in cores:
        core.end(LastCrew)
    for core in cores:
        while core.stock.doing(Errand.CLOSE) and (left := until - time.monotonic()) > 0.0:
            ThreadWaiter().park(min(left, _GLANCE))
