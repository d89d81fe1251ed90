"""What can be measured: metrics by name, and what has them to give."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias, runtime_checkable

from . import params

if TYPE_CHECKING:
    from .latency import Histogram

__all__ = [
    "Instrument",
    "Measure",
    "Metered",
    "Metric",
    "counter",
    "define",
    "defined",
    "gauge",
    "histogram",
    "is_defined",
    "up_down",
]


_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-/]{0,254}")
_LONGEST_UNIT: Final = 63


class Instrument(Enum):
    """What kind of number a metric is, in OpenTelemetry's words."""

    COUNTER = "counter"
    """Only grows. What sources of one name have counted is added up."""
    UP_DOWN_COUNTER = "up-down counter"
    """How many there are now. What sources of one name have is added up."""
    GAUGE = "gauge"
    """A figure that cannot be added up: of sources of one name, the largest is told."""
    HISTOGRAM = "histogram"
    """How values are distributed, in seconds. Those of sources of one name are put together."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name and what it means. Its name never changes, as dashboards and alerts go by it.

    Attributes:
        name: as OpenTelemetry has it, such as "resilient.calls".
        instrument: what kind of number it is.
        unit: in UCUM, such as "s" or "{call}"; "1" for ratios and states; empty where it differs.
        description: what it tells, in one sentence.
        attributes: what it is told by, beside the kind and the name of whatever it is measured on.
        boundaries: the upper bounds of the buckets, for histograms; otherwise empty.
        subject: the attribute that names whatever it is measured on. None: those of its kind and its name.
    """

    name: str
    instrument: Instrument
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    subject: str | None = None

    def __hash__(self) -> int:
        # It is looked up for each of thousands of measures; its name is enough.
        return hash(self.name)


_defined: Final[dict[str, Metric]] = {}


def define(metric: Metric) -> Metric:
    """Return *metric*, of which there is one from now on.

    Raises:
        TypeError: a part of it has the wrong type.
        ValueError: a part of it is not what OpenTelemetry takes, or there is another one of its name.
    """
    if not _NAME.fullmatch(params.named("name", metric.name)):
        params.refuse(ValueError, "name", "must be letters, digits and _ . - / after a letter", metric.name)
    if not str(metric.unit).isascii() or len(metric.unit) > _LONGEST_UNIT:
        params.refuse(ValueError, "unit", f"must be at most {_LONGEST_UNIT} of ASCII", metric.unit)
    params.named("description", metric.description)
    for attribute in metric.attributes:
        params.named("attributes", attribute)
    bounds = metric.boundaries
    if any(not low < high for low, high in pairwise(bounds)) or not all(map(math.isfinite, bounds)):
        params.refuse(ValueError, "boundaries", "must increase, and be finite", bounds)
    known = _defined.setdefault(metric.name, metric)
    if known != metric:
        params.refuse(ValueError, "name", f"is that of another metric, {known}", metric)
    return known


def is_defined(metric: Metric) -> bool:
    """Whether *metric* was made by one of the functions here, and not by its constructor."""
    return _defined.get(metric.name) is metric


def defined() -> list[Metric]:
    """Return all metrics there are, in the order in which they were defined."""
    return list(_defined.values())


Measure: TypeAlias = "tuple[Metric, float | Histogram, tuple[str, ...]]"
"""One number of a metric, now: which; the number, or for a histogram what was recorded since the start; and
the values of the metric's attributes, in their order. Few different ones: never a key, a user or a message.

A bare tuple: thousands of them are made for every collection.
"""


@runtime_checkable
class Metered(Protocol):
    """Whatever has metrics to give: each policy, each pool, health, what else has these three.

    Concurrency: asked from any thread, while metrics are collected.
    """

    kind: ClassVar[str]
    """What it is, such as "CircuitBreaker"."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def measures(self) -> Iterable[Measure]:
        """Return all that can be measured on it now; quickly, and without asking anybody."""
        ...


SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The bounds that OpenTelemetry advises for the durations of requests."""


def counter(name: str, unit: str, description: str, *attributes: str) -> Metric:
    """Define a metric that only grows.

    Args:
        name: as OpenTelemetry has it: small letters, with dots; not "resilient" at the front, which is ours.
        unit: in UCUM, such as "{call}".
        description: what it tells.
        *attributes: what it is told by, beside the kind and the name of whatever it is measured on.

    Returns:
        The metric; the same as before where it was defined before. There is no undoing it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is not what OpenTelemetry takes, or there is another metric of the name.
    """
    return define(Metric(name, Instrument.COUNTER, unit, description, attributes))


def up_down(name: str, unit: str, description: str, *attributes: str) -> Metric:
    """Define a metric that tells how many there are now.

    Args:
        name: as for `counter`.
        unit: in UCUM, such as "{connection}"; "1" for states.
        description: what it tells.
        *attributes: as for `counter`.

    Returns:
        The metric.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `counter`.
    """
    return define(Metric(name, Instrument.UP_DOWN_COUNTER, unit, description, attributes))


def gauge(name: str, unit: str, description: str, *attributes: str) -> Metric:
    """Define a metric that tells a figure which cannot be added up.

    Args:
        name: as for `counter`.
        unit: in UCUM, such as "s"; "1" for ratios.
        description: what it tells.
        *attributes: as for `counter`.

    Returns:
        The metric.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `counter`.
    """
    return define(Metric(name, Instrument.GAUGE, unit, description, attributes))


def histogram(
    name: str, description: str, *attributes: str, boundaries: tuple[float, ...] = SECONDS
) -> Metric:
    """Define a metric that tells how durations are distributed.

    Args:
        name: as for `counter`.
        description: what it tells.
        *attributes: as for `counter`.
        boundaries: the upper bounds of the buckets, in seconds, increasing.

    Returns:
        The metric. Its values are those of a `Recorder`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as for `counter`, or *boundaries* do not increase.
    """
    return define(Metric(name, Instrument.HISTOGRAM, "s", description, attributes, tuple(boundaries)))
