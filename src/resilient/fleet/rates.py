"""Rates that many processes share: what is asked of the store, and what its answers mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ..engine.keys import compact, digest
from ..errors import CircuitOpenError
from ..policies.rate_limiter.decision import Decision, Source
from ..policies.rate_limiter.keys import checked
from ..policies.rate_limiter.ladder import SHARED, Ladder
from ..policies.rate_limiter.quota import Quota
from .link import Link
from .script import Conversation, load, run

__all__ = ["SharedDesk", "SharedRates"]

_SECOND: Final = 1_000_000  # microseconds
_PLAIN: Final = re.compile(r"[\w.:@/+=-]*", re.ASCII)


class SharedRates:
    """Puts questions about one limiter's keys into words of the store, and its answers into decisions.

    The keys of all quotas of one key are in one slot of a cluster. They carry the strategy and its numbers,
    so what one limiter keeps is never read by another that counts differently.
    """

    def __init__(self, name: str, strategy: str, quotas: Sequence[Quota]) -> None:
        file = strategy.replace("-", "_")
        self.script = load("values", file, "decide")
        self._sources = [Source(SHARED, quota) for quota in quotas]
        self._name = _plain(compact(name))
        self._endings = [f":{file}:{quota.amount}:{quota.window:.0f}:{quota.burst}" for quota in quotas]
        self._numbers = tuple(
            number
            for quota in quotas
            for number in (quota.amount, round(quota.window * _SECOND), quota.burst)
        )

    def ask(self, what: str, key: str, cost: int, extra: float = 0) -> Conversation[list[int]]:
        """Say *what* to do with *cost* permits of *key*, as `decide.lua` has it; the answer is raw."""
        keys = self.keys_of(key)
        return run(self.script, keys, (what, cost, round(extra), *self._numbers))

    def keys_of(self, key: str) -> tuple[str, ...]:
        """Return under which keys the store has what *key* has used."""
        # The bar is in no plain text: or the key "b:c" of "a" would be the key "c" of "a:b".
        stem = f"resilient:{{{self._name}|{_plain(key)}}}"
        return tuple(stem + ending for ending in self._endings)

    def decision(self, answer: Sequence[int], key: str, cost: int) -> Decision:
        """Return what *answer* means."""
        taken, which, left, reset, delay, now = answer
        retry_after = delay / _SECOND if delay >= 0 else float("inf")
        source = self._sources[which - 1]
        return Decision(
            (source, taken > 0, reset / _SECOND, retry_after, left, key, taken or cost, float(now))
        )


class SharedDesk:
    """Decides by one request to the store, and on the ladder's next rung where that fails.

    Concurrency: safe from any thread, task and loop.
    """

    def __init__(self, link: Link, rates: SharedRates, ladder: Ladder) -> None:
        self.link = link
        self.rates = rates
        self.ladder = ladder

    def decide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        return self.link.hold(self.decision(checked(key, cost), cost, patience, spend=spend))

    async def adecide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision:
        return await self.link.ahold(self.decision(checked(key, cost), cost, patience, spend=spend))

    def give(self, decision: Decision, amount: int) -> None:
        self.link.hold(self.correction(decision, amount))

    async def agive(self, decision: Decision, amount: int) -> None:
        await self.link.ahold(self.correction(decision, amount))

    def close(self) -> None:
        self.link.close()

    async def aclose(self) -> None:
        await self.link.aclose()

    def decision(self, key: str, cost: int, patience: float, *, spend: bool) -> Conversation[Decision]:
        """Decide about what is checked already, whatever becomes of the store."""
        asked = self.rates.ask("hit" if spend else "peek", key, cost, patience * _SECOND)
        decision = yield from self.guarded(asked, key, cost)
        if decision is None:
            return self.ladder.fall_back(key, cost, patience, spend=spend)
        return self.ladder.made(decision) if spend else decision

    def correction(self, decision: Decision, amount: int) -> Conversation[None]:
        """Give *amount* permits back to whoever made *decision*; the store may be away, and that is all."""
        if decision.rung == SHARED:
            used_at = decision.at + decision.retry_after * _SECOND
            asked = self.rates.ask("give", decision.key, amount, used_at)
            yield from self.guarded(asked, decision.key, decision.cost)
        elif decision.rung == self.ladder.book.rung:
            self.ladder.book.give(decision, amount)

    def guarded(self, asked: Conversation[list[int]], key: str, cost: int) -> Conversation[Decision | None]:
        """Return the store's decision, or None if there is none to be had."""
        try:
            with self.ladder.ascent():
                # Inside: an answer that makes no sense is a failure of the store too.
                return self.rates.decision((yield from asked), key, cost)
        except CircuitOpenError:
            return None
        except Exception:  # noqa: BLE001 - nothing that is wrong with a store may reach who asked
            self.ladder.failed()
            return None


def _plain(text: str) -> str:
    """Return *text*, or a digest of it if it could break the form of a key: its hash tag, or a log line."""
    return text if _PLAIN.fullmatch(text) else digest(text)
