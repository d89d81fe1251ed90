"""The examples, as the processes their readers start."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import ServerProcess
from tests.web.servers import fetch

PROBLEM = "application/problem+json"
ROOT = Path(__file__).parents[2]
COMMANDS = {
    "fastapi": "uvicorn examples.frameworks.fastapi_app:app --port {port}",
    "flask": "flask --app examples.frameworks.flask_app run --port {port}",
    "django-wsgi": "examples.frameworks.django_app runserver --noreload {port}",
    "django-asgi": "uvicorn examples.frameworks.django_app:asgi --port {port}",
}


class Example(ServerProcess):
    """An example on a port of its own."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self._words = command.format(port=self.port).split()

    def _command(self) -> list[str]:
        return [sys.executable, "-m", *self._words]

    def _process_options(self) -> dict[str, Any]:
        return {"env": {**os.environ, "PYTHONPATH": str(ROOT), "FLASK_RESILIENT_DEADLINE": "5"}}

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return fetch(self.port, "/livez")[0] == 404
        return False


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("name", COMMANDS)
def test_example_limits_sheds_and_tells(name: str) -> None:
    """Three orders a minute from each key; the dead warehouse is asked twice; each refusal is a problem."""
    with Example(COMMANDS[name]) as example:
        port = example.port
        ann = [fetch(port, "/orders", "POST", **{"X-API-Key": "ann"}) for _ in range(4)]
        bob = fetch(port, "/orders", "POST", **{"X-API-Key": "bob"})
        stock = [fetch(port, "/stock/tea") for _ in range(3)]
        log = example.log

    assert [status for status, *_ in ann] == [200, 200, 200, 429]
    assert 1 <= int(ann[3][1]["retry-after"]) <= 20
    assert bob[0] == 200
    assert [status for status, *_ in stock] == [502, 502, 503]
    assert 1 <= int(stock[2][1]["retry-after"]) <= 45
    assert {ann[3][1]["content-type"], stock[2][1]["content-type"]} == {PROBLEM}
    assert "100/minute" in stock[0][1]["ratelimit-policy"]
    assert "Traceback" not in log
