"""Reading everything that can be measured, once: what each series stands at. No OpenTelemetry here."""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from ..engine.latency import Histogram
from ..engine.living import Place, all_living
from ..engine.measure import Instrument, Measure, Metered, Metric, is_defined
from ..events import log_fault

__all__ = ["Attributes", "Column", "Reader", "Table"]

_KIND: Final = "resilient.policy.kind"
_NAME: Final = "resilient.policy.name"
_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OURS: Final = __name__.partition(".")[0]
_MOST_DEPARTED: Final = 200  # names of which what those that are gone have counted is kept

Attributes: TypeAlias = dict[str, str]
"""Of a series. Made once, and shared: nobody changes them."""

_Labels: TypeAlias = tuple[str, ...]
_Name: TypeAlias = tuple[str, str]
"""The kind and the name of a source."""
_Durations: TypeAlias = tuple[Metric, Histogram, _Labels]
_Series: TypeAlias = tuple[Metric | None, _Labels, Attributes]
_Counts: TypeAlias = dict[tuple[Metric, _Labels], float]
_Totals: TypeAlias = dict[tuple[Metric, _Name, _Labels], float]
_Fresh: TypeAlias = dict[Metric, dict[tuple[_Name, _Labels], Histogram]]

_NO_SERIES: Final[_Series] = (None, (), {})


class Column(NamedTuple):
    """The series of one metric: what they stand at, and their attributes.

    Two lists and not one of pairs: thousands of pairs would have the garbage collector look at them.
    """

    values: list[float]
    attributes: list[Attributes]


class Table(NamedTuple):
    """All that was read.

    Attributes:
        columns: of each metric that is no histogram.
        fresh: of each histogram, what has come since the last reading.
    """

    columns: dict[Metric, Column]
    fresh: dict[Metric, list[tuple[Attributes, Histogram]]]


class Reader:
    """Reads all that lives, and remembers what has to be remembered from one reading to the next.

    Sources of one name are told together. Counters never fall: what those had counted that are gone stays,
    for the latest names. In a forked child everything counts from the fork.

    Concurrency: one reading at a time; others wait for it. No source is kept alive.
    """

    def __init__(self) -> None:
        self._names: dict[Place, _Name] = {}
        self._series: dict[Place, list[_Series]] = {}
        self._counted: dict[Place, list[float]] = {}  # what each series stood at, in the order of `_series`
        self._recorded: dict[Place, dict[tuple[Metric, _Labels], Histogram]] = {}
        self._before_fork: dict[Place, _Counts] = {}
        self._departed: OrderedDict[_Name, _Counts] = OrderedDict()
        self._faulty: set[Place] = set()
        self._strange: set[Place] = set()  # of classes that are not ours
        self._undated: set[Place] = set()  # what they had counted at the fork is not known yet
        self._lock = threading.RLock()

    def read(self, heard: frozenset[Metric]) -> Table:
        """Return what all series stand at.

        Args:
            heard: the histograms that somebody hears of. What comes to the others is kept for later.
        """
        columns: defaultdict[Metric, Column] = defaultdict(_new_column)
        fresh: _Fresh = {}
        totals: _Totals = {}
        with self._lock:
            # Until they have been asked: who is collected as garbage meanwhile takes along what it counted.
            held = _hold_all()
            places = [place for place, _ in held]
            self._let_go(set(places))
            for place in places:
                self._look(place)
            shared = self._shared_names()
            for place in places:
                measures = self._ask(place)
                if place in self._before_fork or self._names.get(place) in shared:
                    durations = self._add_up(place, measures, totals)
                else:
                    durations = self._tell(place, measures, columns)
                self._note_durations(place, durations, heard, fresh)
            for name, counted in self._departed.items():
                for (metric, labels), value in counted.items():
                    key = (metric, name, labels)
                    totals[key] = totals.get(key, 0) + value
        del held  # without the lock: finalizers may do anything
        for (metric, name, labels), value in totals.items():
            column = columns[metric]
            column.values.append(value)
            column.attributes.append(_attributes(metric, name, labels))
        for metric, column in columns.items():
            if metric.subject is not None:
                columns[metric] = _put_together(metric, column)
        return Table(columns, {metric: _with_attributes(metric, series) for metric, series in fresh.items()})

    def after_fork(self) -> None:
        """Begin anew in a child process: what the parent has counted, the parent reports."""
        self._lock = threading.RLock()
        self._departed.clear()
        self._before_fork.clear()
        for place in all_living():
            self._look(place)
            if place.counts:
                self._begin_from(place, self._ask(place))
            else:  # not here, in the middle of a fork: a lock of its own may be held by nobody
                self._undated.add(place)

    def _look(self, place: Place) -> None:
        """Find the name of a source that is new."""
        source = place()
        if source is None or place in self._names:
            return
        try:
            self._names[place] = (_snake(source.kind), _printable(source.name))
            if type(source).__module__.partition(".")[0] != _OURS:
                self._strange.add(place)
        except Exception:  # noqa: BLE001 - of somebody else's class
            self._complain(place, source)

    def _complain(self, place: Place, source: object) -> None:
        if place not in self._faulty:
            self._faulty.add(place)
            log_fault("the measures of %r cannot be read; that will not be reported again", source)

    def _begin_from(self, place: Place, measures: Sequence[Measure]) -> None:
        """Have a source count from what it has counted up to now."""
        before = self._before_fork[place] = {}
        for metric, value, labels in measures:
            if isinstance(value, Histogram):
                self._recorded.setdefault(place, {})[metric, labels] = value
            elif metric.instrument is Instrument.COUNTER:
                before[metric, labels] = value

    def _shared_names(self) -> set[_Name]:
        """Return the names that more than one has, those that are gone included."""
        times = Counter(self._names.values())
        times.update(self._departed.keys())
        return {name for name, count in times.items() if count > 1}

    def _ask(self, place: Place) -> Sequence[Measure]:
        source = place()
        if source is None or place not in self._names:
            return ()
        try:
            measures = [*source.measures()]
            if place in self._strange:
                for measure in measures:
                    _check(measure)
        except Exception:  # noqa: BLE001 - of one source, in the thread that collects for all of them
            self._complain(place, source)
            return ()
        finally:
            del source
        if place in self._undated:
            self._undated.discard(place)
            self._begin_from(place, measures)
        return measures

    def _tell(
        self, place: Place, measures: Sequence[Measure], columns: dict[Metric, Column]
    ) -> list[_Durations]:
        """Tell what a source has to tell that has a name for itself, as is usual. Return its histograms."""
        durations: list[_Durations] = []
        series = self._series_of(place, measures)
        counted = self._counted[place] = []
        for number, (metric, value, labels) in enumerate(measures):
            if isinstance(value, Histogram):
                durations.append((metric, value, labels))
                counted.append(0.0)
                continue
            known, known_labels, attributes = series[number]
            if known is not metric or known_labels != labels:
                attributes = _attributes(metric, self._names[place], labels)
                series[number] = (metric, labels, attributes)
            values, all_attributes = columns[metric]
            values.append(value)
            all_attributes.append(attributes)
            counted.append(value)
        return durations

    def _add_up(self, place: Place, measures: Sequence[Measure], totals: _Totals) -> list[_Durations]:
        """Add what a source has to tell to what others of its name have, from the fork on, as `_tell`."""
        durations: list[_Durations] = []
        name, before = self._names[place], self._before_fork.get(place, {})
        series = self._series_of(place, measures)
        counted = self._counted[place] = []
        for number, (metric, value, labels) in enumerate(measures):
            series[number] = (metric, labels, _attributes(metric, name, labels))
            if isinstance(value, Histogram):
                durations.append((metric, value, labels))
                counted.append(0.0)
                continue
            key = (metric, name, labels)
            if metric.instrument is Instrument.GAUGE:
                totals[key] = max(value, totals.get(key, value))
                counted.append(0.0)
                continue
            own = value - before.get((metric, labels), 0)
            totals[key] = totals.get(key, 0) + own
            counted.append(own)
        return durations

    def _series_of(self, place: Place, measures: Sequence[Measure]) -> list[_Series]:
        series = self._series.get(place)
        if series is None or len(series) != len(measures):
            series = self._series[place] = [_NO_SERIES] * len(measures)
        return series

    def _note_durations(
        self, place: Place, durations: Sequence[_Durations], heard: frozenset[Metric], fresh: _Fresh
    ) -> None:
        """Note what has come to histograms since they were recorded last."""
        for metric, value, labels in durations:
            if not value.count or metric not in heard:
                continue
            recorded = self._recorded.setdefault(place, {})
            before = recorded.get((metric, labels))
            recorded[metric, labels] = value
            new = value if before is None else value - before
            if new.count:
                series = fresh.setdefault(metric, {})
                key = (self._names[place], labels)
                series[key] = series[key] + new if key in series else new

    def _let_go(self, places: set[Place]) -> None:
        """Keep what those had counted that are gone, and forget them otherwise."""
        for place in self._names.keys() - places:
            name = self._names.pop(place)
            series, values = self._series.pop(place, ()), self._counted.pop(place, ())
            if place() is not None:  # excluded, and may come back
                continue
            counted = self._departed.setdefault(name, {})
            self._departed.move_to_end(name)
            for (metric, labels, _), value in zip(series, values, strict=False):
                if metric is not None and metric.instrument is Instrument.COUNTER:
                    counted[metric, labels] = counted.get((metric, labels), 0) + value
        for known in (self._recorded, self._before_fork):
            for place in [place for place in known if place() is None]:
                del known[place]
        for some in (self._faulty, self._strange, self._undated):
            some.difference_update([place for place in some if place() is None])
        surplus = len(self._departed) - _MOST_DEPARTED
        if surplus > 0:
            alive = set(self._names.values())
            for name in [name for name in self._departed if name not in alive][:surplus]:
                del self._departed[name]


def _check(measure: Any) -> None:
    """Refuse a measure of somebody else's that would spoil those of all others.

    Raises:
        TypeError: it is none.
        ValueError: it does not have three parts, or other labels than its metric has attributes.
    """
    metric, value, labels = measure
    if not isinstance(metric, Metric) or not is_defined(metric):
        raise TypeError(f"a measure must begin with a Metric of counter() and the like, got {metric!r}")
    kinds = (Histogram,) if metric.instrument is Instrument.HISTOGRAM else (int, float)
    if not isinstance(value, kinds):
        raise TypeError(f"the value of {metric.name} must be {kinds[-1].__name__}, got {value!r}")
    if not isinstance(labels, tuple) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"the labels of {metric.name} must be a tuple of texts, got {labels!r}")
    if len(labels) != len(metric.attributes):
        raise ValueError(f"the labels of {metric.name} must fit {metric.attributes}, got {labels!r}")


def _hold_all() -> list[tuple[Place, Metered]]:
    # By itself: a name that is bound in there would stay bound to the last one as long as its frame lives,
    # which may be long, where a logger keeps the traceback of a source that failed.
    return [(place, source) for place in all_living() if (source := place()) is not None]


def _new_column() -> Column:
    return Column([], [])


def _put_together(metric: Metric, column: Column) -> Column:
    """Tell sources of one name together whose kinds are not told: two points would hide each other."""
    together: dict[tuple[str, ...], tuple[float, Attributes]] = {}
    for value, attributes in zip(column.values, column.attributes, strict=True):
        key = tuple(attributes.values())
        if key in together:
            other = together[key][0]
            value = max(value, other) if metric.instrument is Instrument.GAUGE else value + other  # noqa: PLW2901
        together[key] = (value, attributes)
    return Column([value for value, _ in together.values()], [one for _, one in together.values()])


def _with_attributes(
    metric: Metric, series: dict[tuple[_Name, _Labels], Histogram]
) -> list[tuple[Attributes, Histogram]]:
    return [(_attributes(metric, name, labels), values) for (name, labels), values in series.items()]


def _printable(name: str) -> str:
    """Return *name* such that every exporter can write it: as UTF-8, which knows no halves of pairs."""
    return sys.intern(name.encode("utf-8", "backslashreplace").decode())


@lru_cache(maxsize=256)
def _snake(kind: str) -> str:
    return _CAPITAL.sub("_", kind).replace(".", "_").lower()


@lru_cache(maxsize=5_000)
def _attributes(metric: Metric, name: _Name, labels: _Labels) -> Attributes:
    own = dict(zip(metric.attributes, labels, strict=True))
    if metric.subject is not None:
        return {metric.subject: name[1], **own}
    return {_KIND: name[0], _NAME: name[1], **own}
