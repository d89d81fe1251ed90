"""The tables of the page about the checks agree with their signatures, and name them all."""

from __future__ import annotations

from pathlib import Path

from tests.docs.test_defaults import actual, documented

from resilient.health import checks

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "health-checks.md"


def test_every_check_has_its_table() -> None:
    """With the defaults as they are."""
    tables = documented(PAGE.read_text(), "HealthChecks")
    assert tables == {name: actual(getattr(checks, name)) for name in checks.__all__}


def test_every_check_is_in_the_overview() -> None:
    """With what it costs."""
    text = PAGE.read_text()
    assert [name for name in checks.__all__ if f"| [`{name}`](#{name.lower()}) |" not in text] == []


def test_every_check_has_a_name_and_says_where_it_looks() -> None:
    """As `Health` asks it for."""
    external = {name for name in checks.__all__ if getattr(checks, name).external}
    assert external == {"RedisServer", "Database", "HTTPEndpoint", "TCPPort", "DNSName", "TLSCertificate"}
