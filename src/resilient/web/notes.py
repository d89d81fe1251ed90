"""What a middleware and the app inside it tell each other of a request, in its scope or environ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import RateLimitedError
from ..policies.rate_limiter.decision import Decision
from .addresses import TrustedProxies
from .headers import Dialect, Fields, RateFields
from .problem import Answer, problem

__all__ = ["NOTES", "Notes", "answer_inside", "believed", "fresh_notes", "notes_of"]

NOTES: Final = "resilient.notes"
"""Where the scope or the environ has them."""


class Notes:
    """What is known of one request beside what the server tells.

    They refer to nothing of the request: the scope that holds them would be a circle.

    Args:
        dialect: an attribute, too.
        proxies: an attribute, too.
        outer: an attribute, too.
        exempt: whether the middleware lets the request pass by, and adds nothing to its answer.

    Attributes:
        dialect: which fields tell of limits.
        proxies: whose word on the client is believed.
        outer: those of another middleware of ours further outside.
        fields: what the answer, whichever it is, tells of rate limits; none where *teller* has them.
        is_told: whether a middleware adds the fields to the answer.
        teller: those of *outer* and its like whose middleware tells all there is; None where that is here.
        refusal: the error of which the app has made its answer; None where it has not.

    Concurrency: belong to their request.
    """

    __slots__ = ("_told", "dialect", "fields", "is_told", "outer", "proxies", "refusal", "teller")

    def __init__(
        self, dialect: Dialect, proxies: TrustedProxies, outer: Notes | None = None, *, exempt: bool = False
    ) -> None:
        self.dialect: Dialect = dialect
        self.proxies = proxies
        self.outer = outer
        # The outermost that adds fields adds them all, or some would stand there twice.
        self.teller: Notes | None = None if outer is None or not outer.is_told else outer.teller or outer
        self.is_told: bool = not exempt or self.teller is not None
        self.fields: Fields = []
        self.refusal: Exception | None = None
        self._told: Decision | None = None

    def tell(self, decision: Decision, fields: Fields) -> None:
        """Tell of a limit, beside those that are told of already.

        The fields of the IETF's draft are lists; of the older ones there is one of each, about the latest.

        Args:
            decision: what was decided.
            fields: what there is to tell of it.
        """
        self._told = decision
        if self.teller is not None:
            self.teller.tell(decision, fields)
            return
        if self.fields:
            told = dict(self.fields)
            for name, value in fields:
                only_one = name.startswith("X-") or name not in told
                told[name] = value if only_one else f"{told[name]}, {value}"
            fields = list(told.items())
        self.fields = fields

    def refuse(self, error: Exception) -> None:
        """Note that the answer stands for *error*, for the gates of all middlewares around."""
        self.refusal = error
        if self.outer is not None:
            self.outer.refuse(error)

    def tell_refusal(self, error: Exception) -> None:
        """Tell of the limit that refused with *error*, if one did and is not told of already."""
        decision = error.decision if isinstance(error, RateLimitedError) else None
        if decision is not None and decision is not self._told:
            self.tell(decision, RateFields([decision.source.quota], self.dialect).of(decision))


def notes_of(raw: Mapping[str, Any]) -> Notes | None:
    """Return the notes in a scope or environ; None where no middleware of ours is around."""
    return raw.get(NOTES)


_NOBODY: Final = TrustedProxies()


def believed(raw: Mapping[str, Any]) -> TrustedProxies:
    """Return the proxies that the middleware around the app believes; nobody where there is none."""
    around = notes_of(raw)
    return _NOBODY if around is None else around.proxies


def fresh_notes() -> Notes:
    """Return notes as they are where no middleware of ours is around: nobody is believed."""
    return Notes("ietf", _NOBODY, exempt=True)


def answer_inside(error: Exception, raw: Mapping[str, Any]) -> Answer:
    """Return what a framework answers in place of the app, inside of the middleware or without one.

    The middleware adds what its notes tell, and its gate is told of the refusal rather than of the status.

    Args:
        error: one of `REFUSALS`.
        raw: the scope or the environ.
    """
    notes = notes_of(raw) or fresh_notes()
    notes.tell_refusal(error)
    notes.refuse(error)
    return problem(error, [] if notes.is_told else notes.fields)
