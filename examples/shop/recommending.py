"""What keeps the recommendations' memory in bounds, and tells when it grows: all that differs in A5.

`model` loads it once, for all, and watches what the process takes; `latest` keeps one answer only.
"""

from __future__ import annotations

import os
from collections import deque

from examples.shop.services import recommendation
from examples.shop.services.recommendation import MB, Answer
from examples.shop.timing import DAY, lifetime, shelf_life
from resilient import Cache
from resilient.health import MemoryGrowth
from resilient.health.checks.cgroups import Memory
from resilient.health.checks.memory import resident_memory

ANSWERS = 1
# What a container may take says its control group; where there is none, we do.
LIMIT = float(os.environ.get("SHOP_MEMORY_MB", "512")) * MB
# 50 MB in 10 minutes, after a minute to come up in; look twice a minute.
GROWTH, WINDOW, SETTLE, LOOK_EVERY = 50 * MB, lifetime(600), lifetime(60), lifetime(30)

# One load for all who ask at once, and one model for all who come later.
model = Cache("model", ttl=shelf_life(DAY), max_size=1)
load = model(recommendation.load)


def latest() -> deque[Answer]:
    """Return a place for answers that holds the latest one, and no more."""
    return deque(maxlen=ANSWERS)


def container() -> Memory:
    """Return what this process takes, and what it may."""
    return Memory(resident_memory(), LIMIT, "limit of the demo")


def growth() -> MemoryGrowth:
    """Return what warns when this process grows as one that leaks does."""
    return MemoryGrowth(GROWTH, WINDOW, settle=SETTLE, container=container)
