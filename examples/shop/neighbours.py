"""Whom a service depends on, and whether they give a sign of life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

# Whom each service asks, where there is such a service.
DEPENDENCIES: Mapping[str, Sequence[str]] = {
    "rates": (),
    "catalogue": (),
    "currency": ("rates",),
    "checkout": ("catalogue", "currency", "cart", "orders"),
    "cart": ("catalogue", "currency"),
    "orders": (),
    "recommendation": ("catalogue",),
    "frontend": ("catalogue", "currency", "checkout", "cart", "orders", "recommendation"),
}


class Neighbours:
    """The services that one depends on.

    Args:
        name: The one.
        http: Asks them. No time is limited here.
        urls: Where each service listens, by its name.

    Attributes:
        names: Who they are, of those that there are.
    """

    def __init__(self, name: str, http: httpx.AsyncClient, urls: Mapping[str, str]) -> None:
        self.names = [other for other in DEPENDENCIES[name] if other in urls]
        self._http = http
        self._urls = urls

    async def ask(self, name: str, path: str) -> None:
        """Ask one of them for a sign of life; any error says that there is none."""
        (await self._http.get(self._urls[name] + path)).raise_for_status()
