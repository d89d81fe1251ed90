"""Scripts that run in the store, and how one is asked to run."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import NoScriptError

__all__ = ["Command", "Conversation", "Script", "load", "run"]

R = TypeVar("R")

Command: TypeAlias = tuple[str | int | bytes, ...]

Conversation: TypeAlias = Generator[Command, Any, R]
"""What is said to a store, without the saying: commands go out, answers (or errors) come in."""


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
    folder = files(__package__) / "scripts"
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
