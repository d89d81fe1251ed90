"""Random numbers that are the same everywhere.

A logarithm's last bit depends on the machine's mathematics library, and a loop that feeds back makes much of
little. Rounded to nanoseconds, the same seed gives the same traffic.
"""

from __future__ import annotations

import math
import random

DIGITS = 9


class Chance:
    """Draw gaps, durations and fates.

    Args:
        seed: What makes one run differ from another.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def gap(self, rate: float) -> float:
        """Return the seconds until the next call of *rate* calls a second (Poisson)."""
        return round(-math.log(1.0 - self._random.random()) / rate, DIGITS)

    def around(self, mean: float) -> float:
        """Return a duration of *mean* on average: half of it at least, the rest exponential.

        The standard deviation is half of the mean.
        """
        return round(mean * 0.5 * (1.0 - math.log(1.0 - self._random.random())), DIGITS)

    def happens(self, probability: float) -> bool:
        """Tell whether something of that *probability* happens; ask for 0 and nothing is drawn."""
        return probability > 0.0 and self._random.random() < probability
