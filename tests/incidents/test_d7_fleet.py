"""Incident D7, for real: 100 requests a minute for each user, whichever of four processes answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from examples.children import ROOT
from examples.rate_limit_fleet.fleet import WORKERS, Users, running_workers
from tests.support.valkey import ValkeyServer

LIMIT = 100

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture
def told() -> list[str]:
    """What the processes have told."""
    return []


@pytest.fixture
async def users(valkey: ValkeyServer, tmp_path: Path, told: list[str]) -> AsyncIterator[Users]:
    """Users of four running processes, all of which have answered."""
    async with (
        httpx.AsyncClient(timeout=20) as http,
        running_workers(valkey.url, tmp_path, lambda _worker, line: told.append(line)) as urls,
    ):
        users = Users(http, urls)
        await users.ask(["somebody"], WORKERS)
        yield users


async def test_every_user_gets_exactly_the_limit_and_the_rest_is_told(users: Users, told: list[str]) -> None:
    """100 of 130 for each, and no number of remaining requests is told twice."""
    answers = await users.ask(["ada", "grace", "edsger"], 130)

    assert told == [], "the store has decided all of it"
    for user in ("ada", "grace", "edsger"):
        mine = [answer for answer in answers if answer.user == user]
        let_in = [answer for answer in mine if answer.status == 200]
        refused = [answer for answer in mine if answer.status == 429]
        assert (len(let_in), len(refused)) == (LIMIT, 30)
        assert sorted(answer.remaining for answer in let_in) == list(range(LIMIT))
        assert {answer.worker for answer in let_in} == set(range(WORKERS))
        assert {answer.remaining for answer in refused} == {0}
        assert all(answer.retry_after in range(1, 61) for answer in refused)


def test_example_lets_everybody_in_while_the_store_is_away_and_counts_again() -> None:
    """Each process says so, once on the way down and once on the way up."""
    command = [sys.executable, "-m", "examples.rate_limit_fleet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=55)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "As promised." in done.stdout
    assert "650 of 650 requests let in" in done.stdout
    for step in ("from 'shared' to 'allow'", "from 'allow' to 'shared'"):
        assert done.stdout.count(step) == WORKERS
    assert done.stderr == ""
