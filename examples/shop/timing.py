"""How an incident's time is made short enough to watch, and its traffic small enough for two cores.

Five factors, and no other. All are printed by the demo and in its report.

- `scaled`: everything the incident measures in seconds (latencies, timeouts, the breaker's waits, the
  customers' patience) is divided by `SHOP_SCALE`, 5 unless told otherwise: every ratio between them is kept.
- `shelf_life`: how long a cached value is good for is divided by 900, which makes the hour of A4 4 seconds.
  Divided by 5 only, the hour would outlast the demo, the first answer would carry it to the end, and nothing
  would be shown. Refreshing 180 times more often than the incident asks for makes it harder, not easier.
- `session_time`: how long a session of the database may be idle, or held, is divided by 150: the 5 minutes of
  C2 become 2 seconds.
- `lifetime`: how long a process lives before it has taken too much memory is divided by 400: the 10 MB a
  minute of A5 become 67 MB a second. The megabytes are the incident's own.
- `scaled_traffic`: in the flood of A7, requests per second and bursts are divided by `SHOP_TRAFFIC_SCALE`,
  which the demo measures first: on any machine, the flood is as many times more than can be answered.
"""

from __future__ import annotations

import math
import os

SCALE = float(os.environ.get("SHOP_SCALE", "5"))
if not 0 < SCALE < math.inf:
    raise ValueError(f"SHOP_SCALE must be a number above 0, not {SCALE!r}")
SHELF_LIFE_SCALE = 900.0
SESSION_SCALE = 150.0
LIFE_SCALE = 400.0
TRAFFIC_SCALE = float(os.environ.get("SHOP_TRAFFIC_SCALE", "1"))

HOUR = 3600.0
DAY = 86_400.0


def scaled(seconds: float) -> float:
    """Return how long the demo takes over *seconds* of the incident."""
    return seconds / SCALE


def shelf_life(seconds: float) -> float:
    """Return how long the demo keeps what the incident would keep for *seconds*."""
    return seconds / SHELF_LIFE_SCALE


def session_time(seconds: float) -> float:
    """Return how long the demo leaves a session of the database to whoever has it for *seconds*."""
    return seconds / SESSION_SCALE


def lifetime(seconds: float) -> float:
    """Return how long the demo takes over *seconds* of a process's life."""
    return seconds / LIFE_SCALE


def scaled_traffic(requests: float, scale: float = TRAFFIC_SCALE) -> int:
    """Return how many requests the demo makes, or lets through, of those in the incident."""
    return round(requests / scale)
