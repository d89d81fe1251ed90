"""The customers: an open-loop load generator, `python -m examples.shop.load --url … --rate 40 --seconds 60`.

Requests are sent when they are due, never when the one before has been answered, and latency counts from the
moment a request *was due*. So a slow shop cannot slow its own customers down and hide how slow it is
("coordinated omission").

Every request is reported on standard output as one line of JSON, after a first line when time starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urlencode

import httpx

from examples.shop.figures import Sample
from examples.shop.incident import PATIENCE
from examples.shop.parent import when_parent_leaves
from examples.shop.services.catalogue import PRODUCTS_FILE
from examples.shop.timing import scaled

# How often a customer does what, of 19 requests: the mix of Online Boutique's own load generator.
MIX = {"home": 1, "set currency": 2, "browse": 10, "add to cart": 2, "view cart": 3, "checkout": 1}

_PRODUCTS = [product["id"] for product in json.loads(PRODUCTS_FILE.read_text(encoding="utf-8"))]
_CURRENCIES = ["EUR", "USD", "JPY", "CAD", "GBP", "TRY"]


@dataclass(frozen=True, slots=True)
class Due:
    """A request and when it is due, in seconds from the start."""

    at: float
    action: str
    method: str
    path: str


def plan(rate: float, seconds: float, seed: int = 4) -> Iterator[Due]:
    """Yield *seconds* of shopping, *rate* requests a second at even distances.

    The mix is dealt from a shuffled deck, so that every 19 requests hold exactly one checkout, and somebody
    who checks out has filled a cart before.
    """
    dice = random.Random(seed)
    deck: list[str] = []
    filled: deque[str] = deque()
    for number in range(int(rate * seconds)):
        if not deck:
            deck = [action for action, times in MIX.items() for _ in range(times)]
            dice.shuffle(deck)
        action = deck.pop()
        if action == "checkout" and not filled:
            action = "add to cart"
        yield _due(number / rate, action, dice, filled)


def _due(at: float, action: str, dice: random.Random, filled: deque[str]) -> Due:
    user, product = f"user-{dice.randrange(1000)}", dice.choice(_PRODUCTS)
    query = {"user": user, "currency": dice.choice(_CURRENCIES)}
    match action:
        case "home":
            return Due(at, action, "GET", f"/?{urlencode(query)}")
        case "browse":
            return Due(at, action, "GET", f"/product/{product}?{urlencode(query)}")
        case "set currency":
            return Due(at, action, "POST", f"/currency?{urlencode(query)}")
        case "view cart":
            return Due(at, action, "GET", f"/cart?{urlencode(query)}")
        case "add to cart":
            if user not in filled:
                filled.append(user)
            return Due(at, action, "POST", f"/cart?{urlencode(query | {'product': product})}")
        case _:
            query["user"] = filled.popleft()
            return Due(at, action, "POST", f"/checkout?{urlencode(query)}")


class Customers:
    """Sends requests when they are due and reports what became of each."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._start = 0.0

    async def shop(self, requests: Iterator[Due]) -> None:
        """Send everything on time; return when the last request is answered or given up."""
        loop = asyncio.get_running_loop()
        self._start = loop.time()
        _report({"started": True})
        async with asyncio.TaskGroup() as under_way:
            for due in requests:
                await asyncio.sleep(self._start + due.at - loop.time())
                under_way.create_task(self._send(due))

    async def _send(self, due: Due) -> None:
        clock = asyncio.get_running_loop().time
        sent = clock() - self._start
        outcome = await self._outcome(due)
        latency = clock() - self._start - due.at
        _report(asdict(Sample(due.at, due.action, latency, sent - due.at, outcome)))

    async def _outcome(self, due: Due) -> str:
        try:
            async with asyncio.timeout_at(self._start + due.at + scaled(PATIENCE)):
                answer = await self._http.request(due.method, due.path)
        except TimeoutError:
            return "timeout"
        except httpx.TransportError:
            return "broken"
        return str(answer.status_code)


async def run(url: str, rate: float, seconds: float) -> None:
    """Shop at *url*; the connections are not limited, for a queue in here would look like a slow shop."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        await Customers(http).shop(plan(rate, seconds))


def _report(line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Read the command line and shop."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop.load")
    parser.add_argument("--url", required=True, help="where the shop's frontend listens")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True, help="for how long")
    args = parser.parse_args()
    when_parent_leaves(lambda: os._exit(1))
    asyncio.run(run(args.url, args.rate, args.seconds))


if __name__ == "__main__":
    main()
