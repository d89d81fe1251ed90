"""The app that a real server runs in `test_prober.py`: its checks take two seconds, and count their runs."""

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

health = Health("slow", ttl=TTL, timeout=2.5, details="always")
begun: dict[str, list[float]] = {"task": [], "thread": []}


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


async def _runs(scope: Any, receive: Any, send: Any) -> None:
    """Tell when each check was run."""
    if scope["type"] == "lifespan":
        raise RuntimeError("this app does not know about starting")
    body = json.dumps({"begun": begun, "pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


app = asgi_app(health, _runs)
