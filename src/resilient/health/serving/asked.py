"""A request for health and its answer, in the same few words for every server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Answer", "Asked"]


def _none(_name: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks, as far as it matters here.

    Attributes:
        method: such as "GET".
        path: decoded, below where the app is mounted.
        query: what follows the question mark, as it was sent; empty where nothing does.
        header: returns the value of a header field by its name; None where there is none.
        client: the address of who asks, as text; None where nobody knows it.
        vouched: whether *client* is what a declared proxy tells, and not the other end of the connection.
    """

    method: str
    path: str
    query: str = ""
    header: Callable[[str], str | None] = _none
    client: str | None = None
    vouched: bool = False


class Answer(NamedTuple):
    """A whole response: its *status*, *headers* and *body*."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
