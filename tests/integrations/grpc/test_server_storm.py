"""Crowds before a guarded server: however calls end, each place comes back."""

from __future__ import annotations

import random
import threading
from typing import Any

import grpc
import pytest
from tests.support.waiting import wait_until

from resilient import Bulkhead, RateLimiter
from resilient.errors import RateLimitedError

from .rig import COLOURS, SHAPES, Hold, begin, call, channel_to, ended, hosting, is_of_tasks, plain_behaviours

colours = pytest.mark.parametrize("colour", [*COLOURS, "threads of tasks"])
CALLS = 60  # of each of four clients


def moody(seed: int) -> Any:
    """Return what a handler does that succeeds, fails, refuses, aborts, or waits for a moment."""
    chance = random.Random(seed)
    never = threading.Event()

    def act(context: Any) -> Any:
        mood = chance.random()
        if mood < 0.15:
            raise ValueError("moody")
        if mood < 0.3:
            raise RateLimitedError(retry_after=1.0)
        if mood < 0.45:
            return context.abort(grpc.StatusCode.UNAVAILABLE, "moody")
        if mood < 0.6 and not is_of_tasks(context):
            never.wait(0.01)
        return None

    return act


def how(colour: str, act: Any) -> dict[str, Any]:
    """Return what a `Host` is told of its colour."""
    if colour == "threads of tasks":
        return {"colour": "tasks", "behaviours": plain_behaviours(act)}
    return {"colour": colour, "act": act}


@colours
def test_no_place_is_lost(colour: str) -> None:
    """Four clients make calls of all shapes, leave some, give some no time; then all places are there."""
    shed = Bulkhead("storm", 6, max_wait=0.02)
    words = {"shed": shed, "rate_limit": RateLimiter("10000/second"), "deadline": 5.0}
    # The others hang in gRPC when their clients leave.
    shapes = ("unary_unary", "stream_unary") if colour == "threads of tasks" else SHAPES
    codes: list[grpc.StatusCode] = []

    def client(channel: grpc.Channel, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(CALLS):
            shape = chance.choice(shapes)
            under_way = begin(channel, shape, timeout=chance.choice([20.0, 20.0, 20.0, 0.003]))
            if chance.random() < 0.3:
                under_way.cancel()
            codes.append(ended(under_way, shape).code)

    with hosting(words=words, **how(colour, moody(1))) as host, channel_to(host) as channel:
        clients = [threading.Thread(target=client, args=(channel, seed)) for seed in range(4)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        wait_until(lambda: shed.stats().in_use == 0 and shed.stats().waiting == 0, "all places are back")
        assert len(codes) == 4 * CALLS
        assert {code.name for code in codes} >= {
            "OK",
            "UNAVAILABLE",
            "UNKNOWN",
            "RESOURCE_EXHAUSTED",
            "CANCELLED",
        }
        assert call(channel, "unary_unary").code.name in {
            "OK",
            "UNKNOWN",
            "RESOURCE_EXHAUSTED",
            "UNAVAILABLE",
        }


@pytest.mark.parametrize("colour", COLOURS)
def test_places_come_back_from_a_server_that_stops(colour: str) -> None:
    """Whatever was under way."""
    hold = Hold()
    shed = Bulkhead("stop", 10)
    with hosting(words={"shed": shed}, **how(colour, hold)) as host, channel_to(host) as channel:
        under_way = [(begin(channel, shape), shape) for shape in SHAPES]
        # A stream that nobody reads is held up by the client, not by the handler.
        readers = [threading.Thread(target=ended, args=one) for one in under_way]
        for reader in readers:
            reader.start()
        hold.wait_for(len(SHAPES))
        assert shed.stats().in_use == len(SHAPES)
        host.stop()
        hold.let_go()
        for reader in readers:
            reader.join()
        wait_until(lambda: shed.stats().in_use == 0, "all places are back")
        assert {one.code() for one, _ in under_way} <= {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNKNOWN,
        }
