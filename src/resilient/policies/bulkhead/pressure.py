"""Pressure on the process itself: a placeholder of the words, until the measuring is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...typing import Clock

__all__ = ["Pressure", "PressureMeter", "Reading"]


class Reading(NamedTuple):
    lag: float
    cpu: float
    factor: float


@dataclass(frozen=True, slots=True)
class Pressure:
    lag: float = 0.05
    cpu: float = 0.9

    def meter(self, clock: Clock) -> PressureMeter:
        raise NotImplementedError


class PressureMeter:
    def touch(self) -> None:
        raise NotImplementedError

    def read(self) -> Reading:
        raise NotImplementedError
