"""The shop's door: this file is the whole difference between the two runs of the flood.

The figures are those of the incident; `scaled_traffic` fits them to the machine (see `timing.py`).
"""

from __future__ import annotations

from starlette.types import ASGIApp

from examples.shop.timing import TRAFFIC_SCALE, scaled_traffic
from resilient import RateLimiter
from resilient.asgi import Maintenance, ResilienceMiddleware

LIMIT = 100.0
BURST = 200.0

# To close the shop while it runs: `maintenance.on(for_=600, reason="stocktaking")`.
maintenance = Maintenance("<h1>We are counting our mugs and shall be back soon</h1>")


def per_client(scale: float) -> RateLimiter:
    """Return what one client may ask for: 100 requests a second, 200 at once."""
    rate = f"{scaled_traffic(LIMIT, scale)}/second"
    return RateLimiter(rate, burst=scaled_traffic(BURST, scale), name="per-client")


def guarded(app: ASGIApp, scale: float = TRAFFIC_SCALE) -> ASGIApp:
    """Return the shop's frontend behind its door; the load balancer before it tells who is asking."""
    return ResilienceMiddleware(
        app, rate_limit=per_client(scale), maintenance=maintenance, trusted=["127.0.0.1"]
    )
