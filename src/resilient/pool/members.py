"""The connections of a pool, and who has each.

To have a connection is to have its token, and a token is an object: whoever drops it, by an interrupt
between two steps, by a task that is gone, by forgetting, is seen to have dropped it by the weak reference
that is kept to it. Then there is a new token for the same connection. So nothing in between can lose one.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from math import inf
from typing import Any, Final

from .borrowers import Borrower, Site, lines_of, where_of

__all__ = ["Chore", "Errand", "Gone", "Member", "Roster", "Token"]


class Errand(Enum):
    """What can be done for a connection by somebody who may have to wait for it."""

    CONNECT = auto()
    CHECK = auto()
    RESET = auto()
    CLOSE = auto()
    CUT = auto()


class Member:
    """A connection, or the place of one that is being made, and what is known of it.

    While it is lent its fields belong to the borrower, who writes without a lock; others only read.
    """

    __slots__ = (
        "checked",
        "conn",
        "errand",
        "expires",
        "home",
        "idle_from",
        "orphan",
        "ref",
        "references",
        "reported",
        "returned",
        "since",
        "site",
        "stand_in",
        "suspect",
        "task",
        "thread",
        "until",
        "used",
    )

    def __init__(self, home: Any, now: float) -> None:
        self.home: Final = home  # whose it is
        self.ref: weakref.ref[Token] | None = None
        self.conn: Any = None
        self.stand_in: Any = None  # the class of what is lent in its place
        self.expires = inf
        self.returned = now  # when it was last seen to be good, by who used it or by a check
        self.checked = now  # when it was, by a check
        self.idle_from = now  # since when nobody had used it then
        self.suspect = False  # others of its age were broken
        self.references = 0  # how many others there are to a connection that nobody has
        # What is being done, and until when it should be.
        self.errand: Errand | None = Errand.CONNECT
        self.until = inf
        # Of whoever has borrowed it.
        self.since: float | None = None
        self.site: Site = ()
        self.thread: Any = None
        self.task: str | None = None
        self.reported: float | None = None  # the loan that was reported as too long, by its `since`
        self.orphan = False  # its borrower was collected
        self.used = 0.0  # seconds

    @property
    def leaked(self) -> bool:
        """Whether it is held for too long, and that was reported."""
        return self.since is not None and self.reported == self.since

    @property
    def idle_since(self) -> float:
        """When it was last used."""
        return self.idle_from if self.returned == self.checked else self.returned

    def is_promising(self, now: float, failing_since: float, patience: float) -> bool:
        """Tell whether it may come free and be good, though connecting has failed since some moment."""
        if self.errand is not None:
            return self.errand in {Errand.CHECK, Errand.RESET}
        if self.returned > failing_since:
            return True
        return self.since is not None and now - self.since < patience

    def was_good(self, now: float) -> None:
        """Note that a check has found it good."""
        self.idle_from = self.idle_since
        self.checked = self.returned = now

    def borrower(self, now: float) -> Borrower:
        """Return who has it, or had it last."""
        since, thread, task = self.since, self.thread, self.task
        return Borrower(
            where=where_of(self.site),
            stack=lines_of(self.site),
            thread="unknown" if thread is None else thread.name,
            task=task,
            held_for=0.0 if since is None else now - since,
            leaked=self.leaked,
        )


class Gone:
    """Stands in the place of a connection, and of what was known about it, once it was taken away.

    Whoever uses it is told so. Tokens of it are good for nothing: see `returned` and `expires`.
    """

    __slots__ = ("_error", "home", "quiet")

    returned: Final = -inf
    expires: Final = -inf

    def __init__(self, home: Any, error: Callable[[], Exception], *, quiet: bool = False) -> None:
        self.home = home
        self.quiet = quiet  # whether giving it back is no mistake
        self._error = error

    def error(self) -> Exception:
        """Return what to raise where it is used."""
        return self._error()

    def __getattr__(self, name: str) -> Any:
        raise self._error()


class Token:
    """The right to use a connection. Nobody holds two, and no connection has two."""

    __slots__ = ("__weakref__", "conn", "member")

    def __init__(self, member: Member | Gone) -> None:
        self.member = member
        self.conn: Any = None


class Chore:
    """Something to be done for a connection. Whoever has the chore has the connection's token."""

    __slots__ = ("delay", "errand", "token")

    def __init__(self, errand: Errand, token: Token, delay: float = 0.0) -> None:
        self.errand: Final = errand
        self.token: Final = token
        self.delay: Final = delay  # seconds to wait first


class Roster:
    """All connections of a pool, and the tokens of those that nobody uses.

    A token is taken by `idle.pop()` and put back by `idle.append(token)`, each of which is one step that no
    interrupt and no other thread can come between.

    Concurrency: what is not said above requires external locking. Each method may be interrupted anywhere:
    what is left undone is made good when lost tokens are looked for next.
    """

    __slots__ = ("_home", "_lost", "_members", "_parted", "idle")

    def __init__(self, home: Any) -> None:
        self._home = home
        self.idle: Final[deque[Token]] = deque()
        self._members: dict[weakref.ref[Token], Member] = {}
        # Those that were taken away from somebody who still has the token, and may be using them.
        self._parted: dict[weakref.ref[Token], Member] = {}
        # Weak references call C code: Python code could be interrupted there, and the interrupt lost.
        self._lost: deque[weakref.ref[Token]] = deque()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        # Of a copy: collecting garbage may end a forgotten block in between.
        return iter([*self._members.values()])

    @property
    def unsettled(self) -> bool:
        """Whether a token may have been lost."""
        return bool(self._lost)

    def admit(self, now: float) -> Token:
        """Return the token of a new member, which has no connection yet."""
        return self._mint(Member(self._home, now))

    def remove(self, token: Token) -> None:
        """Have one member less."""
        member = token.member
        if isinstance(member, Member) and member.ref is not None:
            self._members.pop(member.ref, None)

    def part(self, member: Member, gone: Gone) -> Token | None:
        """Take *member* away from whoever has its token; return that, if there is anybody.

        The connection is kept until the token is given up: whoever has that may be inside of a call.
        """
        ref = member.ref
        token = None if ref is None else ref()
        if ref is None or token is None:
            return None  # it was lost just now, and will be found
        self._parted[ref] = member
        token.member = gone
        token.conn = gone
        self._members.pop(ref, None)
        return token

    def found(self) -> Iterator[Token]:
        """Return new tokens for the members whose old ones were lost."""
        while self._lost:
            ref = self._lost[0]
            member = self._members.get(ref)
            # Not so if an interrupt came between the two, when there had been a new token already.
            if member is not None and member.ref is ref:
                token = self._mint(member)
                self._members.pop(ref, None)
                self._forget(ref)
                yield token
            else:
                self._members.pop(ref, None)
                self._forget(ref)

    def given_up(self) -> Iterator[Any]:
        """Return the connections that were taken away, and that nobody uses any more."""
        for ref in [ref for ref in self._parted if ref() is None]:
            member = self._parted.pop(ref, None)
            if member is not None and member.conn is not None:
                yield member.conn

    def after_fork(self, gone: Callable[[], Gone]) -> list[Any]:
        """Begin anew, and return the connections, which are the parent's."""
        inherited = [*self._members.items(), *self._parted.items()]
        for ref, _ in inherited:
            token = ref()
            if token is not None:
                token.member = token.conn = gone()
        self._members = {}
        self._parted = {}
        self._lost.clear()
        self.idle.clear()
        return [member.conn for _, member in inherited if member.conn is not None]

    def _mint(self, member: Member) -> Token:
        token = Token(member)
        token.conn = member.conn
        ref = weakref.ref(token, self._lost.append)
        self._members[ref] = member
        member.ref = ref
        return token

    def _forget(self, ref: weakref.ref[Token]) -> None:
        if self._lost and self._lost[0] is ref:
            self._lost.popleft()
