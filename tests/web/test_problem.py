"""Answers to refusals, whatever the errors of the user's own are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.web.support import WORLDS, World

from resilient import RateLimiter
from resilient.errors import CallTimeoutError, MaintenanceError, RateLimitedError, RejectedError


def own(kind: type[Exception]) -> Exception:
    """Return an error of a class that forgets to call the constructor of ours."""

    class Own(kind):  # type: ignore[misc, valid-type]
        def __init__(self, number: int) -> None:
            self.number = number

    return Own(5)


def refusing(error: Exception) -> Any:
    """Return an app that raises *error*."""

    def app() -> Any:
        raise error

    return app


@pytest.mark.parametrize("world", WORLDS, ids=repr)
class TestErrorsOfTheUsersOwn:
    @pytest.mark.parametrize(
        ("kind", "status", "least"),
        [
            (RejectedError, 503, 1),
            (MaintenanceError, 503, 1),
            (RateLimitedError, 429, None),
            (CallTimeoutError, 504, None),
        ],
    )
    def test_constructor_need_not_be_called(
        self, world: World, kind: type[Exception], status: int, least: int | None
    ) -> None:
        """They are answered like ours of which no more is known."""
        reply = world.get(world.middleware(refusing(own(kind))))

        assert (reply.status, json.loads(reply.body)["status"]) == (status, status)
        assert (reply["Retry-After"] is None) == (least is None)

    @pytest.mark.parametrize("retry_after", ["5", b"5", object(), float("nan"), [5]])
    @pytest.mark.parametrize("kind", [RejectedError, RateLimitedError])
    def test_time_that_is_no_number_is_not_known(
        self, world: World, kind: type[RejectedError], retry_after: Any
    ) -> None:
        """And is repeated to nobody."""
        reply = world.get(world.middleware(refusing(kind("no", retry_after=retry_after))))

        assert reply.status in {429, 503}
        assert reply["Retry-After"] in {None, "1", "2", "3"}


@pytest.mark.parametrize("world", WORLDS, ids=repr)
def test_limit_is_spelt_alike_in_document_and_field(world: World) -> None:
    """Clients look one up by the other; fields have no letters beyond ASCII."""
    app = world.middleware(rate_limit=RateLimiter("1/hour", name="z\u00e4hler"))

    reply = [world.get(app) for _ in range(2)][1]

    assert json.loads(reply.body)["violated-policies"] == ["z?hler"]
    assert (reply["RateLimit"] or "").startswith('"z?hler";')
