"""The apps that servers run in `test_drain_servers.py`; as a script, a worker without a web server."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from resilient.health import Health
from resilient.health.serving.asgi import asgi_app
from resilient.health.serving.drain import drain_on_sigterm
from resilient.health.serving.server import serve
from resilient.health.serving.wsgi import wsgi_app

DELAY = float(os.environ.get("RESILIENT_TEST_DELAY", "0.8"))

health = Health("drained")


@health.check("local", external=False)
def local() -> None:
    """Pass."""


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("this app does not know about starting")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _whello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


asgi = asgi_app(health, _hello)
draining_asgi = asgi_app(health, _hello, drain_delay=DELAY)
wsgi = wsgi_app(health, _whello)


def work(port: int) -> None:
    """Work until somebody says no."""
    drain_on_sigterm(health, DELAY)
    with serve(health, port=port, paths={"all": ["/health", "/work"]}):
        while True:
            # In short steps: a signal that comes while another thread starts one is handled in that thread as
            # far as the system goes, and by Python when the main thread wakes up.
            time.sleep(0.05)


if __name__ == "__main__":
    work(int(sys.argv[1]))
