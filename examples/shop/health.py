"""What every service of the shop tells of its health.

`/livez` says whether the process had better be started again, and looks at nobody else; `/readyz` whether to
send it customers; `/startupz` whether it has come up; `/health` tells everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from examples.shop.neighbours import DEPENDENCIES, Neighbours
from examples.shop.timing import scaled
from resilient.health import EventLoopLag, Health, Witness

VERSION = "1.0"
# What is known of others is looked up again after 5 seconds; who does not answer within 2.5 is not there.
TTL, TIMEOUT = scaled(5), scaled(2.5)
# An event loop that has stood still for so long is late, or will not turn again.
WORRYING, HOPELESS = 1.0, 30.0
# What goes on without whom, by what is on: with a fallback for it, a service is ready all the same.
SPARED: Mapping[str, Mapping[str, Collection[str]]] = {
    "calls": {"currency": ["rates"]},
    "static": {"frontend": DEPENDENCIES["frontend"]},
}


def health_of(name: str, neighbours: Neighbours, protections: Collection[str]) -> Health:
    """Return what knows how a service is doing, so far by those whom it depends on.

    They are asked for a sign of life, and not whether they are ready: or one that cannot work would
    make all the others unready.
    """
    # The frontend's is open to everybody, who need not know what is behind it.
    details = "never" if name == "frontend" else "always"
    health = Health(name, VERSION, timeout=TIMEOUT, ttl=TTL, details=details)
    health.add(EventLoopLag(warn=WORRYING, fail=HOPELESS), groups=["live"])
    spared = {other for protection in protections for other in SPARED.get(protection, {}).get(name, ())}
    judges = _judges(name, protections)
    for other in neighbours.names:
        ask = partial(neighbours.ask, other, "/livez")
        health.add(ask, other, critical=other not in spared, judged_by=judges.get(other))
    return health


def _judges(name: str, protections: Collection[str]) -> Mapping[str, Witness]:
    """Return who sees the traffic to those whom a service depends on; while there is some, nobody asks."""
    # Imported only here: the bare shop builds no policy at all.
    if name == "currency" and "calls" in protections:
        from examples.shop import protected

        return {"rates": protected.rates_breaker}
    if name == "frontend" and "static" in protections:
        from examples.shop import static

        return {"catalogue": static.catalogue, "currency": static.currency, "checkout": static.checkout}
    return {}
