"""What the contract tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.contract.forms import Driver

from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


@pytest.fixture(scope="module")
def drive() -> Iterator[Driver]:
    """Run calls of any kind. One loop serves a whole module: one for each of thousands of tests is slow."""
    driver = Driver()
    yield driver
    driver.close()
