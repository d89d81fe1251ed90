"""What every service of the shop tells of its health.

`/livez` says whether the process had better be started again, and looks at nobody else; `/readyz` whether to
send it customers; `/startupz` whether it has come up; `/health` tells everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module

from examples.shop.neighbours import DEPENDENCIES, Neighbours
from examples.shop.timing import scaled
from resilient.health import Health

VERSION = "1.0"
# What is known of others is looked up again after 5 seconds; who does not answer within 2.5 is not there.
TTL, TIMEOUT = scaled(5), scaled(2.5)
# What goes on without whom, by what is on: with a fallback for it, a service is ready all the same.
SPARED: Mapping[str, Mapping[str, Collection[str]]] = {
    "calls": {"currency": ["rates"]},
    "static": {"frontend": DEPENDENCIES["frontend"]},
}


def health_of(name: str, neighbours: Neighbours, protections: Collection[str]) -> Health:
    """Return what knows how a service is doing: by those whom it depends on, and what it observes itself.

    The former are asked for a sign of life, and not whether they are ready: or one that cannot work would
    make all the others unready.
    """
    # The frontend's is open to everybody, who need not know what is behind it.
    details = "never" if name == "frontend" else "always"
    health = Health(name, VERSION, timeout=TIMEOUT, ttl=TTL, details=details)
    spared = {other for protection in protections for other in SPARED.get(protection, {}).get(name, ())}
    for other in neighbours.names:
        health.add(partial(neighbours.ask, other, "/livez"), other, critical=other not in spared)
    service = import_module(f"{__package__}.services.{name}")
    if hasattr(service, "observe"):
        service.observe(health, protections)
    return health
