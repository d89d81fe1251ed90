"""The visitors, an open-loop load generator: `python -m examples.shop.load --url … --patience 3 --crowd …`.

Requests are sent when they are due, never when the one before has been answered, and latency counts from the
moment a request *was due*. So a slow shop cannot slow its own customers down and hide how slow it is
("coordinated omission"). Only the heedful client waits, for as long as `Retry-After` says.

Every request is reported on standard output as one line of JSON, after a first line when time starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from examples.children import allow_many_connections, when_parent_leaves
from examples.shop.browser import Answer, BrokenError, Browser
from examples.shop.crowds import HEEDFUL, Crowd, Due, plan, sign_of_life
from examples.shop.figures import Sample


class Visitors:
    """Sends requests when they are due and reports what became of each.

    Args:
        browser: Sends them.
        patience: After how many seconds without an answer a visitor leaves.
    """

    def __init__(self, browser: Browser, patience: float) -> None:
        self._browser = browser
        self._patience = patience
        self._start = 0.0

    async def visit(self, crowds: Sequence[Crowd]) -> None:
        """Send everything on time; return when the last request is answered or given up."""
        self._start = asyncio.get_running_loop().time()
        _report({"started": True})
        async with asyncio.TaskGroup() as everybody:
            for name in dict.fromkeys(crowd.name for crowd in crowds):
                visits = [crowd for crowd in crowds if crowd.name == name]
                everybody.create_task(self._heed(*visits) if name == HEEDFUL else self._press(*visits))

    async def _press(self, *crowds: Crowd) -> None:
        async with asyncio.TaskGroup() as under_way:
            for due in plan(*crowds):
                await self._until(due.at)
                under_way.create_task(self._send(due))

    async def _heed(self, crowd: Crowd) -> None:
        """Ask again and again, but after a refusal not before the time that it named."""
        due = sign_of_life(crowd.start, "ask")
        while due.at < crowd.end:
            await self._until(due.at)
            sample = await self._send(due)
            answered = due.at + sample.latency
            if sample.retry_after is not None:
                due = sign_of_life(answered + sample.retry_after, "come back")
            else:
                due = sign_of_life(max(answered, due.at + 1 / crowd.rate), "ask")

    async def _send(self, due: Due) -> Sample:
        sent = self._now
        answer = await self._answer(due)
        outcome, retry_after = (
            (answer, None) if isinstance(answer, str) else (str(answer.status), answer.retry_after)
        )
        sample = Sample(
            due.at, due.action, self._now - due.at, sent - due.at, outcome, due.crowd, retry_after
        )
        _report(asdict(sample))
        return sample

    async def _answer(self, due: Due) -> Answer | str:
        try:
            async with asyncio.timeout_at(self._start + due.at + self._patience):
                return await self._browser.ask(due.method, due.path, due.address, due.fields)
        except TimeoutError:
            return "timeout"
        except BrokenError:
            return "broken"

    async def _until(self, at: float) -> None:
        await asyncio.sleep(at - self._now)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._start


async def run(url: str, crowds: Sequence[Crowd], patience: float) -> None:
    """Let the crowds visit *url*."""
    async with Browser(url) as browser:
        await Visitors(browser, patience).visit(crowds)


async def without_a_pause(url: str, requests: Iterator[Due], at_once: int, for_seconds: float) -> list[float]:
    """Let *at_once* visitors ask, each as soon as the answer before is there; return when answers came."""
    clock = asyncio.get_running_loop().time
    start = clock()
    answers: list[float] = []

    async def shop() -> None:
        while clock() < start + for_seconds:
            due = next(requests)
            await browser.ask(due.method, due.path, due.address, due.fields)
            answers.append(clock() - start)

    async with Browser(url) as browser, asyncio.TaskGroup() as customers:
        for _ in range(at_once):
            customers.create_task(shop())
    return answers


def _report(line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Read the command line and visit."""
    parser = argparse.ArgumentParser(prog="python -m examples.shop.load")
    parser.add_argument("--url", required=True, help="where the shop's frontend listens")
    parser.add_argument(
        "--crowd", type=Crowd.parse, action="append", required=True, help="name:requests per second:from:to"
    )
    parser.add_argument("--patience", type=float, required=True, help="seconds until a visitor leaves")
    args = parser.parse_args()
    when_parent_leaves(lambda: os._exit(1))
    allow_many_connections()
    asyncio.run(run(args.url, args.crowd, args.patience))


if __name__ == "__main__":
    main()
