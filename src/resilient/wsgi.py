"""Guard a WSGI app: `ResilienceMiddleware`, and what its arguments are made of."""

from __future__ import annotations

from .web.addresses import TrustedProxies
from .web.deadlines import deadline_headers
from .web.door import Block, FaultyAnswerError, Gate, RateLimit
from .web.headers import Dialect
from .web.keys import Key, api_key, client_address, combined, route, user
from .web.maintenance import Maintenance, MaintenanceStats
from .web.priorities import PriorityKey, priority_headers, requested_priority
from .web.request import Request
from .web.wsgi import ResilienceMiddleware

__all__ = [
    "Block",
    "Dialect",
    "FaultyAnswerError",
    "Gate",
    "Key",
    "Maintenance",
    "MaintenanceStats",
    "PriorityKey",
    "RateLimit",
    "Request",
    "ResilienceMiddleware",
    "TrustedProxies",
    "api_key",
    "client_address",
    "combined",
    "deadline_headers",
    "priority_headers",
    "requested_priority",
    "route",
    "user",
]
