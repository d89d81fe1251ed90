"""The payment service, over gRPC: `python -m examples.shop.services.payment NAME --port PORT --book FILE`.

Two of them keep one book, in which an order is entered once for each key that it came with: who asks again
with the same key gets the first answer again.

Messages are JSON. Standard output tells what was charged; standard input takes knobs, a JSON object a line.
When the parent lets go of it, the service ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from examples.shop.journal import say
from examples.shop.timing import scaled
from resilient.health import Health

SERVICE = "shop.Payment"
CHARGE = f"/{SERVICE}/Charge"
# What the certificates are for, wherever they are shown.
HOST_NAME = "payment.shop"

CHARGE_TIME = float(os.environ.get("SHOP_CHARGE_TIME") or scaled(1.0))
# The acquirer, who moves the money, is not well if so many of the latest charges came to nothing.
TOO_MANY, LATELY, ENOUGH = 0.3, scaled(10), 5

_GRACE = 0.2


class Book:
    """What was charged, in a file that outlives the service, and that another one writes as well."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, timeout=5, isolation_level=None)
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.execute('CREATE TABLE IF NOT EXISTS charges ("key" PRIMARY KEY, "order", amount, "by")')

    def enter(self, wish: dict[str, str], by: str) -> bool:
        """Enter a charge; return whether it was not there already."""
        row = (wish["key"], wish["order"], wish["amount"], by)
        return self._file.execute("INSERT OR IGNORE INTO charges VALUES (?, ?, ?, ?)", row).rowcount == 1

    def has(self, key: str) -> bool:
        """Return whether something was charged with this key."""
        return self._file.execute('SELECT 1 FROM charges WHERE "key" = ?', (key,)).fetchone() is not None

    def orders(self) -> list[str]:
        """Return the order of each charge."""
        return [str(order) for (order,) in self._file.execute('SELECT "order" FROM charges')]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(slots=True)
class Knobs:
    """How it behaves: the share of charges that end in an error, half of them after the money was moved."""

    error_ratio: float = 0.0


class Payment:
    """One payment service.

    Args:
        name: Which one.
        book: What was charged.
        write: Is told what is charged.
    """

    def __init__(self, name: str, book: Book, write: Callable[[str], object] = say) -> None:
        self.knobs = Knobs()
        self._name = name
        self._book = book
        self._write = write
        # Seeded, so that two runs meet the same errors.
        self._dice = random.Random(name)
        self._ended: deque[tuple[float, bool]] = deque(maxlen=1000)

    async def charge(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Charge the card for an order, once for each key."""
        wish = json.loads(request)
        fails = self._dice.random() < self.knobs.error_ratio
        self._ended.append((time.monotonic(), not fails))
        self._tell("asked", wish)
        if fails and self._dice.random() < 0.5:
            await context.abort(grpc.StatusCode.INTERNAL, "the acquirer made a mistake")
        if not self._book.has(wish["key"]):
            await asyncio.sleep(CHARGE_TIME)
        first = self._book.enter(wish, self._name)
        self._tell("charged" if first else "known", wish)
        if fails:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return json.dumps({"receipt": wish["key"], "by": self._name}).encode()

    def acquirer(self) -> bool:
        """Tell whether the acquirer does what it is asked, as of late."""
        since = time.monotonic() - LATELY
        ends = [good for at, good in [*self._ended] if at >= since]
        return len(ends) < ENOUGH or ends.count(False) / len(ends) < TOO_MANY

    def _tell(self, what: str, wish: dict[str, str]) -> None:
        self._write(json.dumps({"note": what, "by": self._name, "order": wish["order"]}))


def health_of(payment: Payment) -> Health:
    """Return what knows how a payment service is doing."""
    health = Health("payment", "1.0", ttl=scaled(1))
    health.add(payment.acquirer, "acquirer", critical=True, interval=scaled(1), pass_after=3)
    return health


async def serve(name: str, port: int, book: Book, key: bytes, certificate: bytes) -> None:
    """Serve until the parent lets go of standard input."""
    payment, over = Payment(name, book), asyncio.Event()
    loop = asyncio.get_running_loop()

    def obey(order: dict[str, Any]) -> None:
        # As a process that swaps, or is stopped in a debugger: nothing goes on in it, for so many seconds.
        time.sleep(order.pop("freeze", 0))
        for knob, value in order.items():
            setattr(payment.knobs, knob, value)

    def read() -> None:
        for line in _lines():
            loop.call_soon_threadsafe(obey, json.loads(line))
        loop.call_soon_threadsafe(over.set)

    server = grpc.aio.server()
    methods = {"Charge": grpc.unary_unary_rpc_method_handler(payment.charge)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    with health_of(payment) as health:
        health.grpc(server, services={SERVICE: "ready"})
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
        await server.start()
        threading.Thread(target=read, daemon=True).start()
        say(json.dumps({"up": name}))
        await over.wait()
        await server.stop(_GRACE)


def _lines() -> Iterator[bytes]:
    """Yield the lines of standard input; os.read, as in `examples.children`."""
    rest = b""
    while chunk := os.read(0, 4096):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop.services.payment")
    parser.add_argument("name", help="what it calls itself")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--book", type=Path, required=True, help="a file for what was charged")
    parser.add_argument("--key", type=Path, required=True, help="the file of a private key, as PEM")
    parser.add_argument("--certificate", type=Path, required=True, help="that of its certificate")
    args = parser.parse_args()
    book = Book(args.book)
    try:
        identity = args.key.read_bytes(), args.certificate.read_bytes()
        asyncio.run(serve(args.name, args.port, book, *identity))
    finally:
        book.close()


if __name__ == "__main__":
    main()
