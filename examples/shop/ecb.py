"""Exchange rates as the European Central Bank publishes them: one XML file a day, everything per euro."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

SHIPPED_FILE = Path(__file__).parent / "data" / "eurofxref-daily.xml"
PATH = "/stats/eurofxref/eurofxref-daily.xml"

_CENT = Decimal("0.01")
_CUBE = "{http://www.ecb.int/vocabulary/2002-08-01/eurofxref}Cube"


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of one day: how much of each currency a euro buys."""

    day: str
    per_euro: Mapping[str, Decimal]

    def convert(self, amount: Decimal, *, of: str, to: str) -> Decimal:
        """Return *amount* of one currency in another, to the cent; `KeyError` for one that is not listed."""
        euros = amount / self.per_euro[of]
        return (euros * self.per_euro[to]).quantize(_CENT, ROUND_HALF_UP)


def parse(document: bytes) -> Rates:
    """Read a daily file; the euro itself, which the bank leaves out, is added."""
    cubes = list(ET.fromstring(document).iter(_CUBE))
    per_euro = {
        cube.attrib["currency"]: Decimal(cube.attrib["rate"]) for cube in cubes if "rate" in cube.attrib
    }
    day = next(cube.attrib["time"] for cube in cubes if "time" in cube.attrib)
    return Rates(day, {"EUR": Decimal(1), **per_euro})


def render(rates: Rates) -> bytes:
    """Write a daily file."""
    lines = [f'<Cube currency="{c}" rate="{rate}"/>' for c, rate in rates.per_euro.items() if c != "EUR"]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<gesmes:Envelope xmlns:gesmes="http://www.gesmes.org/xml/2002-08-01"'
        ' xmlns="http://www.ecb.int/vocabulary/2002-08-01/eurofxref">'
        "<gesmes:subject>Reference rates</gesmes:subject>"
        "<gesmes:Sender><gesmes:name>European Central Bank</gesmes:name></gesmes:Sender>"
        f'<Cube><Cube time="{rates.day}">{"".join(lines)}</Cube></Cube></gesmes:Envelope>\n'
    ).encode()


@cache
def shipped() -> Rates:
    """Return the rates that are released with the shop: old, but never away."""
    return parse(SHIPPED_FILE.read_bytes())
