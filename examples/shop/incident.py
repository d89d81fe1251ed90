"""What an incident is: how it is played, what is shown of it, and what is promised about it.

The machinery around it (`scenario.py`, `display.py`, `report/`) is the same for all; each has its module in
`incidents/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from examples.shop.crowds import CUSTOMERS, Crowd
from examples.shop.figures import FAULT, ONSET, Run, Sample, Span, Summary
from examples.shop.processes import Hear, Shop, running_shop
from examples.shop.service import NAMES
from examples.shop.timing import scaled

# In every incident, in its own seconds: customers wait 15 s at most. A checkout used to take 2 s: an answer
# that takes more than twice that is not counted as a good one. The rates API answers in 100 ms.
PATIENCE = 15.0
GOOD_WITHIN = 4.0
CALM_LATENCY = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """How an incident is played: the visitors' requests per second, and each phase in seconds."""

    rate: float
    warm_up: float
    calm: float
    fault: float
    recovery: float
    onset: float = 0.0
    """How long the incident takes to settle, before the fault is judged."""
    patience: float = scaled(PATIENCE)
    """After how many seconds without an answer visitors leave."""
    good_within: float = scaled(GOOD_WITHIN)
    """What a good answer takes at most, in seconds."""

    def spans(self) -> list[Span]:
        """Return the phases one after the other."""
        spans, start = [], 0.0
        lengths = {
            "warm-up": self.warm_up,
            "calm": self.calm,
            ONSET: self.onset,
            FAULT: self.fault,
            "recovery": self.recovery,
        }
        for name, length in lengths.items():
            if length:
                spans.append(Span(name, start, start + length, faulty=name in {ONSET, FAULT}))
            start += length
        return spans


@dataclass(frozen=True, slots=True)
class Version:
    """One of the shops to which an incident is played.

    Attributes:
        name: What it is called, also in the style sheet.
        protections: What is on in it, see `service.PROTECTIONS`.
        environment: Variables that its services need beside the usual ones.
    """

    name: str
    protections: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


BARE = Version("bare")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one version of the shop: everything measured, and a summary by phase."""

    run: Run
    phases: Mapping[str, Summary]

    @property
    def calm(self) -> Summary:
        """Before it happened."""
        return self.phases["calm"]

    @property
    def fault(self) -> Summary:
        """While it happened."""
        return self.phases[FAULT]


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, what was measured, and whether it held."""

    promise: str
    measured: str
    held: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of phases."""

    header: str
    text: Callable[[Summary], str]


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that says it in one glance, of some runs by the names of their versions."""

    title: str
    figures: Mapping[str, str]

    @classmethod
    def of(cls, title: str, outcomes: Sequence[Outcome], figure: Callable[[Outcome], str]) -> Self:
        """Return one that shows a figure of each run."""
        return cls(title, {outcome.run.version: figure(outcome) for outcome in outcomes})


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A section of the report: its heading, and what is in it, as HTML."""

    heading: str
    body: str


class Incident(ABC):
    """One incident.

    Attributes:
        key: Its name in `incidents.md` and on the command line.
        title: A few words.
        versions: The shops to which it is played, one after the other.
        difference: The file that holds all of what protects them.
        defaults: How it is played unless told otherwise; a rate of 0 is measured first.
        columns: What the table of phases tells, after the phase's name.
        services: Which services its shop has, see `service.py`.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    versions: ClassVar[Sequence[Version]]
    difference: ClassVar[Path]
    defaults: ClassVar[Settings]
    columns: ClassVar[Sequence[Column]]
    services: ClassVar[Sequence[str]] = NAMES

    async def prepare(self, settings: Settings, logs: Path) -> Settings:
        """Find out what is not settled yet."""
        return settings

    def spans(self, settings: Settings, version: Version) -> list[Span]:
        """Return the phases that one version of the shop goes through."""
        return settings.spans()

    def crowds(self, settings: Settings, version: Version) -> list[Crowd]:
        """Return who visits one version of the shop."""
        return [Crowd(CUSTOMERS, settings.rate, 0.0, self.spans(settings, version)[-1].end)]

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return variables that the services of every version need beside the usual ones."""
        return {}

    @asynccontextmanager
    async def surroundings(self, settings: Settings, logs: Path, hear: Hear) -> AsyncIterator[dict[str, str]]:
        """Run what one shop needs beside its services, say a database, while the context is open.

        Args:
            settings: How the incident is played.
            logs: A directory for what is printed.
            hear: Is told what is seen there, as of what a service tells of itself.

        Yields:
            Variables by which the services find it.
        """
        yield {}

    def shop(
        self, version: Version, logs: Path, hear: Hear, environment: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Shop]:
        """Return a context in which one version of the shop runs."""
        return running_shop(logs, version.protections, hear, environment, self.services)

    async def begin(self, span: Span, hear: Hear) -> None:  # noqa: B027 - in most incidents nothing does
        """Do to the surroundings what happens to them when a phase begins, and tell *hear* what is seen."""

    def api_latency(self, span: Span) -> float:
        """Return how long the rates API takes to answer in a phase, in seconds of the demo."""
        return scaled(CALM_LATENCY)

    @abstractmethod
    def story(self, settings: Settings) -> str:
        """Tell in a few sentences what happens and how it is scaled."""

    @abstractmethod
    def gauges(self, run: Run, lately: Sequence[Sample]) -> dict[str, str]:
        """Return what is worth watching beside latency and goodput, given what was just answered."""

    @abstractmethod
    def checks(self, settings: Settings, *outcomes: Outcome) -> list[Check]:
        """Compare the runs, in the order of the versions, with what is promised."""

    @abstractmethod
    def tiles(self, *outcomes: Outcome) -> list[Tile]:
        """Return the figures for the top of the report."""

    @abstractmethod
    def exhibits(self, settings: Settings, *outcomes: Outcome) -> list[Exhibit]:
        """Return the report's sections that tell what happened."""

    @abstractmethod
    def facts(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Return how it was played: what, in the incident, here."""

    @abstractmethod
    def notes(self, settings: Settings) -> list[str]:
        """Return what has to be known to judge whether that was fair, paragraph by paragraph."""

    @abstractmethod
    def policies(self, settings: Settings) -> list[dict[str, object]]:
        """Describe the policies that protect the shop, as `resilient.testing.describe` does."""
