"""How often a call is being made again, carried by the context to whoever sends its requests.

Telemetry wants it on each request that is sent once more. A call that succeeds at once sets nothing.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType

__all__ = ["Resend", "resend_count"]


class Resend:
    """A block around one further attempt of a call, the *count*-th.

    When it ends, its count is 0, and whoever still finds it looks at the one outside. Taking it out of the
    context would not do: a cancelled coroutine may be closed in another context than the one it ran in, and
    a task that an attempt has left behind has a copy.

    Concurrency: belongs to one attempt; its context may be copied to other tasks and threads.
    """

    __slots__ = ("count", "outer")

    def __init__(self, count: int) -> None:
        self.count = count
        self.outer: Resend | None = None

    def __enter__(self) -> None:
        outer = _innermost.get()
        while outer is not None and not outer.count:  # what has ended is not kept alive
            outer = outer.outer
        self.outer = outer
        _innermost.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.count = 0


_innermost: ContextVar[Resend | None] = ContextVar("resilient_resend", default=None)


def resend_count() -> int:
    """Return how often what is done in this context has been done before, for retries: 0 in a first attempt.

    Inside a retry that is inside a retry, the counts of both are added up.

    Concurrency: reads the current context only.
    """
    count, resend = 0, _innermost.get()
    while resend is not None:
        count += resend.count
        resend = resend.outer
    return count
