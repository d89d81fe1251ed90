"""The payment services of A8: two processes with one book, which are killed, frozen, and taken for others."""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trustme

from examples.children import free_ports, heard, spawned
from examples.shop.processes import ServiceDiedError
from examples.shop.services.payment import HOST_NAME, Book

NAMES = ("payment-1", "payment-2")
HOST = "127.0.0.1"
_STARTUP = 30.0


class Backends:
    """Two payment services, each on a port of its own, which it has again when it is back.

    Args:
        folder: A directory for the book and for what they print.
        tell: Is told what they say.
        environment: Further variables for them.
    """

    def __init__(
        self, folder: Path, tell: Callable[[str, dict[str, Any]], None], environment: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._tell = tell
        self._environment = {**os.environ, **environment}
        self._ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self._running: dict[str, tuple[Process, AsyncExitStack]] = {}
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.authority)
        # Before anybody writes in it: to begin a book takes it alone.
        Book(self._book).close()

    @property
    def addresses(self) -> list[str]:
        """Where they are."""
        return [f"{HOST}:{port}" for port in self._ports.values()]

    @property
    def authority(self) -> Path:
        """The certificate that speaks for theirs."""
        return self._folder / "authority.pem"

    async def start(self, name: str, *, stranger: bool = False) -> None:
        """Start one, and return when it is up; a *stranger* has a certificate for which nobody speaks."""
        up = asyncio.Event()

        def hear(line: bytes) -> None:
            said = json.loads(line)
            if "up" in said:
                up.set()
            else:
                self._tell(name, said)

        arguments = (name, "--port", str(self._ports[name]), "--book", str(self._book))
        log = self._folder / f"{name}.log"
        async with AsyncExitStack() as stack:
            child = spawned(
                "examples.shop.services.payment",
                (*arguments, *self._identity(name, trustme.CA() if stranger else self._authority)),
                log,
                env=self._environment,
            )
            process = await stack.enter_async_context(child)
            await stack.enter_async_context(heard(process, hear))
            if not await _either(up.wait(), process.wait()):
                raise ServiceDiedError(
                    "\n".join([f"{name} did not come up", log.read_text(errors="replace")])
                )
            self._running[name] = process, stack.pop_all()

    def _identity(self, name: str, authority: trustme.CA) -> list[str]:
        issued = authority.issue_cert(HOST_NAME)
        key, certificate = (self._folder / f"{name}.{kind}" for kind in ("key", "pem"))
        issued.private_key_pem.write_to_path(key)
        issued.cert_chain_pems[0].write_to_path(certificate)
        return ["--key", str(key), "--certificate", str(certificate)]

    async def kill(self, name: str) -> None:
        """Kill one, as the out-of-memory killer does."""
        process, stack = self._running.pop(name)
        process.kill()
        await stack.aclose()

    def turn(self, name: str, **knobs: float) -> None:
        """Turn the knobs of one; `freeze` is for how many seconds it does nothing at all."""
        process, _ = self._running[name]
        assert process.stdin is not None
        process.stdin.write(json.dumps(knobs).encode() + b"\n")

    async def close(self) -> None:
        """Stop them all."""
        while self._running:
            _, (_, stack) = self._running.popitem()
            await stack.aclose()

    def charged(self) -> list[str]:
        """Return the order of each charge in the book."""
        book = Book(self._book)
        try:
            return book.orders()
        finally:
            book.close()

    @property
    def _book(self) -> Path:
        return self._folder / "charges.sqlite"


@asynccontextmanager
async def running_backends(
    folder: Path, tell: Callable[[str, dict[str, Any]], None], environment: Mapping[str, str]
) -> AsyncIterator[Backends]:
    """Run the payment services while the context is open."""
    backends = Backends(folder, tell, environment)
    try:
        await asyncio.gather(*map(backends.start, NAMES))
        yield backends
    finally:
        await backends.close()


async def _either(first: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object]) -> bool:
    """Return whether the first of two things comes to pass before the other, and in time."""
    tasks = [asyncio.create_task(first), asyncio.create_task(other)]
    try:
        await asyncio.wait(tasks, timeout=_STARTUP, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
