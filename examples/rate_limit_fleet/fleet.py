"""The service's processes, and users who ask them in turn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from examples.children import heard, listen, spawned, tell_to_stop, url_of

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What a user was answered, and by which process; times in seconds."""

    user: str
    worker: int
    status: int
    remaining: int | None
    retry_after: int | None
    took: float

    def counted_of(self, limit: int) -> bool:
        """Whether it was counted: in an outage, what is let in leaves all of the limit."""
        return self.remaining is not None and self.remaining < limit


@asynccontextmanager
async def running_workers(
    store: str, logs: Path, hear: Callable[[int, str], object] = lambda worker, line: None
) -> AsyncIterator[list[str]]:
    """Run the processes of the service while the context is open; yield where each listens.

    Args:
        store: The Redis or Valkey that they share.
        logs: A directory for their logs.
        hear: Is told what happens to them: which one it is, and a line.
    """
    async with AsyncExitStack() as stack:
        urls, processes = [], []
        for number in range(WORKERS):
            listener = stack.enter_context(listen())
            environment, descriptor = {**os.environ, "STORE": store}, listener.fileno()
            arguments, log = ["--fd", str(descriptor)], logs / f"worker-{number}.log"
            options = {"env": environment, "pass_fds": [descriptor]}
            child = spawned("examples.rate_limit_fleet.app", arguments, log, **options)
            processes.append(await stack.enter_async_context(child))
            await stack.enter_async_context(heard(processes[-1], _reader(number, hear)))
            urls.append(url_of(listener))
            listener.close()  # from here on only the child listens
        try:
            yield urls
        finally:
            for process in processes:
                tell_to_stop(process)


def _reader(worker: int, hear: Callable[[int, str], object]) -> Callable[[bytes], object]:
    return lambda line: hear(worker, line.decode().rstrip())


class Users:
    """They ask the processes in turn, as a load balancer would have it.

    Args:
        http: What they ask with.
        urls: Where the processes listen.
        at_once: How many requests are under way at most.
    """

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str], at_once: int = 16) -> None:
        self._http = http
        self._urls = urls
        self._slots = asyncio.Semaphore(at_once)

    async def ask(self, users: Iterable[str], times: int) -> list[Answer]:
        """Let each user make *times* requests, all of them mixed."""
        turns = [user for _ in range(times) for user in users]
        asking = (self._ask(user, turn % len(self._urls)) for turn, user in enumerate(turns))
        return await asyncio.gather(*asking)

    async def _ask(self, user: str, worker: int) -> Answer:
        async with self._slots:
            start = time.monotonic()
            answer = await self._http.get(self._urls[worker], headers={"x-user": user})
            took = time.monotonic() - start
        remaining, wait = (_number(answer, name) for name in ("x-ratelimit-remaining", "retry-after"))
        return Answer(user, worker, answer.status_code, remaining, wait, took)


def _number(answer: httpx.Response, name: str) -> int | None:
    return int(answer.headers[name]) if name in answer.headers else None
