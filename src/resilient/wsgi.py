"""Guard a WSGI app: `ResilienceMiddleware`, and what its arguments are made of."""

from __future__ import annotations

from .web.addresses import TrustedProxies
from .web.deadlines import deadline_headers
from .web.keys import api_key, client_address, combined, route, user
from .web.maintenance import Maintenance, MaintenanceStats
from .web.request import Request
from .web.wsgi import ResilienceMiddleware

__all__ = [
    "Maintenance",
    "MaintenanceStats",
    "Request",
    "ResilienceMiddleware",
    "TrustedProxies",
    "api_key",
    "client_address",
    "combined",
    "deadline_headers",
    "route",
    "user",
]
