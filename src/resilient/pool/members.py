"""The connections of a pool, and who has each.

To have a connection is to have its token, and a token is an object: whoever drops it, by an interrupt
between two steps, by a task that is gone, by forgetting, is seen to have dropped it by the weak reference
that is kept to it. Then there is a new token for the same connection. So nothing in between can lose one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum, auto
from math import inf
from typing import Any, Final, NamedTuple, NoReturn

from ..errors import ConnectionReturnedError
from .borrowers import Borrower, Site, lines_of, where_of

__all__ = ["Chore", "Errand", "Fence", "Gone", "Loan", "Member", "Roster", "Token"]


_A_MOMENT: Final = 1.0  # seconds


class Errand(Enum):
    """What can be done for a connection by somebody who may have to wait for it."""

    CONNECT = auto()
    CHECK = auto()
    RESET = auto()
    CLOSE = auto()
    CUT = auto()


class Loan(NamedTuple):
    """What is known of a borrower, before anybody has read it."""

    site: Site
    thread: threading.Thread | None
    task: str | None
    since: float | None
    leaked: bool

    def borrower(self, now: float) -> Borrower:
        """Return it in words."""
        return Borrower(
            where=where_of(self.site),
            stack=lines_of(self.site),
            thread="unknown" if self.thread is None else self.thread.name,
            task=self.task,
            held_for=0.0 if self.since is None else now - self.since,
            leaked=self.leaked,
        )


class Member:
    """A connection, or the place of one that is being made, and what is known of it.

    While it is lent its fields belong to the borrower, who writes without a lock; others only read.
    """

    __slots__ = (
        "asked",
        "checked",
        "conn",
        "errand",
        "expires",
        "generation",
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
    )

    def __init__(self, home: Any, now: float) -> None:
        self.home: Final = home  # whose it is
        self.ref: weakref.ref[Token] = _NOBODYS  # to its token
        self.conn: Any = None
        self.stand_in: Any = None  # the class of what is lent in its place
        self.expires = inf
        self.generation = 0
        self.returned = now  # when it was last seen to be good, by who used it or by a check
        self.checked = now  # when it was, by a check
        self.asked = False  # whether that was for whoever gets it next
        self.idle_from = now  # since when nobody had used it then
        self.suspect = False  # others of its age were broken
        self.references = 0  # how many others there are to a connection that nobody has
        # What is being done, and until when it should be.
        self.errand: Errand | None = Errand.CONNECT
        self.until = inf
        # Of whoever has borrowed it.
        self.since: float | None = None
        self.site: Site = ()
        self.thread: threading.Thread | None = None
        self.task: str | None = None
        self.reported: float | None = None  # the loan that was reported as too long, by its `since`
        self.orphan = False  # its borrower was collected

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
        return self.since is None or now - self.since < patience  # without, it is just being handed over

    def was_of_no_use(self, now: float) -> bool:
        """Tell whether it was made a moment ago, and nobody has seen it work."""
        return self.returned == self.checked == self.idle_from and now - self.returned < _A_MOMENT

    def suspect_it(self) -> None:
        """Have it checked before it is lent again."""
        self.idle_from = self.idle_since
        self.checked = self.returned = -inf
        self.suspect = True

    def was_good(self, now: float) -> None:
        """Note that a check has found it good."""
        self.idle_from = self.idle_since
        self.checked = self.returned = now
        self.asked = True

    def loan(self) -> Loan:
        """Return by whom it is borrowed, or was last."""
        return Loan(self.site, self.thread, self.task, self.since, self.leaked)

    def borrower(self, now: float) -> Borrower:
        """Return who has it, or had it last."""
        return self.loan().borrower(now)


class Gone:
    """Stands in the place of what was known of a connection, once that was taken away.

    Tokens of it are good for nothing: see `returned` and `expires`.
    """

    __slots__ = ("error", "home", "quiet")

    returned: Final = -inf
    expires: Final = -inf

    def __init__(self, home: Any, error: Callable[[], Exception], *, quiet: bool = False) -> None:
        self.home = home
        self.error = error  # makes what to raise where it is used
        self.quiet = quiet  # whether giving it back is no mistake


class Fence:
    """Stands in the place of a connection that was taken away: whatever is asked of it raises."""

    __slots__ = ("_gone",)

    def __init__(self, gone: Gone) -> None:
        object.__setattr__(self, "_gone", gone)

    def __getattribute__(self, name: str) -> type[Fence]:
        if name == "__class__":  # who looks through all objects there are asks for it
            return Fence
        raise object.__getattribute__(self, "_gone").error()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise object.__getattribute__(self, "_gone").error()

    def __delattr__(self, name: str) -> NoReturn:
        raise object.__getattribute__(self, "_gone").error()


class Token:
    """The right to use a connection. Nobody holds two, and no connection has two."""

    __slots__ = ("__weakref__", "conn", "member")

    def __init__(self, member: Member | Gone) -> None:
        self.member = member
        self.conn: Any = None


_NOBODYS: Final = weakref.ref(Token(Gone(None, Exception)))
"""Stands for the reference to a token while there is none: as dead as that of one that was lost."""


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

    def admit(self, now: float, generation: int) -> Token:
        """Return the token of a new member of a generation, which has no connection yet."""
        member = Member(self._home, now)
        member.generation = generation
        token, member.ref = self._mint(member)
        return token

    def remove(self, token: Token) -> None:
        """Have one member less."""
        member = token.member
        if isinstance(member, Member):
            self._members.pop(member.ref, None)

    def renew(self, token: Token) -> Token:
        """Return another token in the place of *token*, which somebody may still have."""
        member = token.member
        if not isinstance(member, Member):
            return token
        old = member.ref
        renewed, ref = self._mint(member)
        member.ref = ref  # first: should an interrupt come now, it is by this one that the member is found
        self._members.pop(old, None)
        token.member = Gone(member.home, ConnectionReturnedError, quiet=True)
        return renewed

    def part(self, member: Member, gone: Gone) -> bool:
        """Take *member* away from whoever has its token; tell whether there is anybody.

        The connection is kept until the token is given up: whoever has that may be inside of a call.
        """
        ref = member.ref
        token = ref()
        if token is None:
            return False  # it was lost just now, and will be found
        fence = Fence(gone)
        self._parted[ref] = member
        token.member = gone
        token.conn = fence
        self._members.pop(ref, None)
        return True

    def found(self) -> Iterator[Token]:
        """Return new tokens for the members whose old ones were lost."""
        while self._lost:
            ref = self._lost[0]
            member = self._members.get(ref)
            # Not so if an interrupt came between the two, when there had been a new token already.
            # And not if it was taken away: then it is closed, and not lent again.
            if member is not None and member.ref() is None and ref not in self._parted:
                token = self._remint(ref, member)
                if token is not None:
                    yield token
                    del token
            self._members.pop(ref, None)
            with suppress(ValueError):  # somebody else did, while we were at it
                self._lost.remove(ref)

    def let_go(self, token: Token) -> Any | None:
        """Return the connection that was taken from who has *token*, and gives it up now."""
        member = self._parted.pop(weakref.ref(token), None)
        return None if member is None else member.conn

    def given_up(self) -> Iterator[Any]:
        """Return the connections that were taken away, and that nobody uses any more."""
        for ref in [ref for ref in self._parted if ref() is None]:
            member = self._parted.pop(ref, None)
            if member is not None and member.conn is not None:
                yield member.conn

    def after_fork(self, gone: Gone) -> list[Any]:
        """Begin anew, and return the connections, which are the parent's."""
        inherited = [*self._members.items(), *self._parted.items()]
        for ref, _ in inherited:
            token = ref()
            if token is not None:
                token.member = gone
                token.conn = Fence(gone)
        self._members = {}
        self._parted = {}
        self._lost.clear()
        self.idle.clear()
        return [member.conn for _, member in inherited if member.conn is not None]

    def _remint(self, lost: weakref.ref[Token], member: Member) -> Token | None:
        """Return a new token for *member*; None if it has got one while we were at it.

        Whoever takes the old one out has the right to the new one. For making one may have garbage collected,
        which may return a forgotten connection, which looks for lost tokens, too.
        """
        token, ref = self._mint(member)
        if self._members.pop(lost, None) is None:
            self._members.pop(ref, None)
            return None
        member.ref = ref
        return token

    def _mint(self, member: Member) -> tuple[Token, weakref.ref[Token]]:
        token = Token(member)
        token.conn = member.conn
        ref = weakref.ref(token, self._lost.append)
        self._members[ref] = member
        return token, ref
