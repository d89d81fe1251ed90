"""Scripts that run in the store, and how one is asked to run."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

from ..engine.waiting import Waiter

__all__ = ["Command", "Conversation", "Meeting", "Script", "load", "run"]

R = TypeVar("R")

Command: TypeAlias = tuple[str | int | bytes, ...]


class Meeting(Protocol):
    """Something that others are doing already: whoever joins is woken at its end; False if that was."""

    def join(self, waiter: Waiter, /) -> bool: ...


Conversation: TypeAlias = Generator[Command | Meeting, Any, R]
"""What is said to a store, without the saying: commands go out, answers (or errors) come in.

To a meeting, the answer is whether it ended in time.
"""


@dataclass(frozen=True)
class Script:
    """A Lua script.

    Args:
        source: its text.
    """

    source: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        # Not for security: it is the name under which the server keeps the script.
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


@cache
def load(*names: str) -> Script:
    """Return the script made of the files *names*, one after the other."""
    folder = files("resilient.fleet") / "scripts"
    return Script("\n".join((folder / f"{name}.lua").read_text() for name in names))


def run(script: Script, keys: tuple[str, ...], arguments: tuple[str | int, ...]) -> Conversation[Any]:
    """Have *script* run once, and return its answer.

    A server that was restarted, failed over or flushed does not know the script: it says so without having
    done anything, and is told the whole of it. Nothing else is said twice: where an answer is lost, the
    script may have run.
    """
    rest = (len(keys), *keys, *arguments)
    try:
        return (yield ("EVALSHA", script.digest, *rest))
    except NoScriptError:
        pass  # outside: or it would be the context of whatever else goes wrong
    return (yield ("EVAL", script.source, *rest))
