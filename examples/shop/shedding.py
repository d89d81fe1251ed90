"""What sheds the load that is too much: this file is the whole difference between the runs of the overload.

`SHOP_LIMIT` in the environment puts a fixed number in the place of the limit that finds itself;
`SHOP_INITIAL_LIMIT` has that one begin somewhere else.
"""

from __future__ import annotations

import os

from starlette.types import ASGIApp

from resilient import Bulkhead, Gradient, Priority, current_priority
from resilient.asgi import Request, ResilienceMiddleware

# The pages of those who have decided to buy.
BUYING = {"/cart", "/checkout"}


def importance(request: Request) -> Priority | None:
    """Tell how much a request matters: nobody waits for what a browser fetches ahead of its user."""
    if (request.header("Sec-Purpose") or "").startswith("prefetch"):
        return Priority.SHEDDABLE
    return Priority.CRITICAL if request.path in BUYING else None


def limit() -> int | Gradient:
    """Return how many requests may be under way at once."""
    if fixed := os.environ.get("SHOP_LIMIT"):
        return int(fixed)
    return Gradient(
        initial=int(os.environ.get("SHOP_INITIAL_LIMIT", "20")),
        min_limit=2,
        tolerance=1.3,
        queue=2,
        smoothing=0.4,
    )


frontend = Bulkhead("frontend", limit(), max_wait=0.2, order="newest-first", priority=current_priority)


def guarded(app: ASGIApp) -> ASGIApp:
    """Return the shop's frontend behind its bulkhead; probes have a slot of their own there."""
    return ResilienceMiddleware(app, shed=frontend, priority=importance, exempt=())
