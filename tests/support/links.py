"""The connections a limiter keeps, closed before a test's event loop is."""

from __future__ import annotations

from resilient.fleet import link


async def close_connections() -> None:
    """Close what the running event loop has open to any store."""
    for one in list(link._links.values()):
        await one.aclose()
