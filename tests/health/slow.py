"""The app that a real server runs in `test_prober.py`: two checks take two seconds; all count their runs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from resilient.health import Health
from resilient.health.serving.asgi import asgi_app

TTL = 0.5
TOOK = 2.0
# How long after one run of a check the next may begin: what a run finds is kept from its end on.
APART = {"task": TOOK + TTL, "thread": TOOK + TTL, "quick": TTL}

health = Health("slow", ttl=TTL, timeout=2.5, details="always")
begun: dict[str, list[float]] = {"task": [], "thread": [], "quick": []}


@health.check("task", critical=True)
async def task() -> None:
    """Take two seconds in a task."""
    begun["task"].append(time.monotonic())
    await asyncio.sleep(TOOK)


@health.check("thread", critical=True)
def thread() -> None:
    """Take two seconds in a thread."""
    begun["thread"].append(time.monotonic())
    time.sleep(TOOK)


@health.check("quick", critical=True)
def quick() -> None:
    """Take no time, so that nothing but `ttl` keeps it from being run for each probe."""
    begun["quick"].append(time.monotonic())


async def _runs(scope: Any, receive: Any, send: Any) -> None:
    """Tell when each check was run."""
    if scope["type"] == "lifespan":
        raise RuntimeError("this app does not know about starting")
    body = json.dumps({"begun": begun, "pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


app = asgi_app(health, _runs)
