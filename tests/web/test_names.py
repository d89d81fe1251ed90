"""The names that the two modules for users offer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resilient import CircuitBreaker, asgi, wsgi

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_both_modules_offer_the_same() -> None:
    """Only the middleware is another one."""
    assert asgi.__all__ == wsgi.__all__
    others = [name for name in asgi.__all__ if getattr(asgi, name) is not getattr(wsgi, name)]
    assert others == ["ResilienceMiddleware"]


@pytest.mark.parametrize("name", asgi.__all__)
def test_every_name_stands_in_the_reference(name: str) -> None:
    """With its docstring."""
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))

    assert re.search(rf"^::: resilient\.asgi\.{name}$", pages, re.MULTILINE)


def test_breaker_at_the_door_may_look_away_from_faulty_answers() -> None:
    """By the error that stands for them."""
    gate: asgi.Gate = CircuitBreaker(fail_max=1, exclude=asgi.FaultyAnswerError)
    block: asgi.Block = gate.calling()
    block.__enter__()
    error = asgi.FaultyAnswerError("answered 500")
    block.__exit__(type(error), error, None)

    gate.calling().__enter__()
