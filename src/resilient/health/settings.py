"""What a user may say of each check, and what holds where he says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from ..engine import params
from ..typing import Seconds
from .record import Rules

__all__ = ["CheckWords", "Defaults"]

_FAILED_TTL: Final = 5.0  # at most, where the user does not say: a failure is not to be told for long
_STALE_PERIODS: Final = 3.0


class CheckWords(TypedDict, total=False):
    """The arguments of `Health.check`, where they are passed through; they are documented there."""

    critical: bool | None
    timeout: Seconds | None
    ttl: Seconds | None
    failed_ttl: Seconds | None
    interval: Seconds | None
    fail_after: int | None
    pass_after: int | None
    grace: Seconds | None
    stale_after: Seconds | None
    groups: Iterable[str] | None
    depends_on: Iterable[str]
    external: bool | None
    live_anyway: str | None
    judged_by: Any


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for all checks that do not say otherwise; see `Health`."""

    timeout: float
    ttl: float
    interval: float | None
    fail_after: int
    pass_after: int
    grace: float

    def rules(self, words: CheckWords) -> Rules:
        """Return the rules of one check.

        Raises:
            TypeError: a word has the wrong type.
            ValueError: a word is out of range.
        """
        timeout = _seconds(words, "timeout") or self.timeout
        interval = _seconds(words, "interval") or self.interval
        ttl = interval or _seconds(words, "ttl") or self.ttl
        # In the background a check is run as often as was said, and no more often because it fails.
        failed_ttl = _seconds(words, "failed_ttl") or interval or min(ttl, _FAILED_TTL)
        longer = max(ttl, failed_ttl)
        fail_after, pass_after = words.get("fail_after"), words.get("pass_after")
        grace, stale_after = words.get("grace"), words.get("stale_after")
        return Rules(
            timeout=timeout,
            ttl=ttl,
            failed_ttl=failed_ttl,
            fail_after=self.fail_after if fail_after is None else params.count("fail_after", fail_after),
            pass_after=self.pass_after if pass_after is None else params.count("pass_after", pass_after),
            grace=self.grace if grace is None else params.seconds("grace", grace),
            stale_after=_STALE_PERIODS * longer + timeout
            if stale_after is None
            else params.seconds("stale_after", stale_after, least=longer, infinite=True),
            background=interval is not None,
        )


def _seconds(words: CheckWords, name: str) -> float | None:
    value: Seconds | None = words.get(name)  # type: ignore[assignment]
    return params.optional_seconds(name, value)
