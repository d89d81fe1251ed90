"""Who asks the shop for what, and when: settled beforehand, so that both runs meet the same."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode

from examples.shop.services.catalogue import PRODUCTS_FILE

CUSTOMERS = "customers"
FLOOD = "flood"
HEEDFUL = "heedful"

# How often a customer does what, of 19 requests: the mix of Online Boutique's own load generator.
MIX = {"home": 1, "set currency": 2, "browse": 10, "add to cart": 2, "view cart": 3, "checkout": 1}
PAGES = MIX.keys() - {"checkout"}

_PRODUCTS = [product["id"] for product in json.loads(PRODUCTS_FILE.read_text(encoding="utf-8"))]
_CURRENCIES = ["EUR", "USD", "JPY", "CAD", "GBP", "TRY"]


@dataclass(frozen=True, slots=True)
class Crowd:
    """Some visitors: how many requests a second they make together, from when to when.

    `customers` shop, each from an address of their own. The `flood` comes from one address and looks at
    products, whatever it is answered. The `heedful` client asks too often as well, but only for a sign of
    life, and when it is told to come back later, it does just that.
    """

    name: str
    rate: float
    start: float
    end: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` writes."""
        name, *numbers = text.split(":")
        return cls(name, *map(float, numbers))

    def __str__(self) -> str:
        return f"{self.name}:{self.rate}:{self.start}:{self.end}"


@dataclass(frozen=True, slots=True)
class Due:
    """A request and when it is due, in seconds from the start; `address` is where it comes from."""

    at: float
    action: str
    method: str
    path: str
    crowd: str
    address: str


def plan(crowd: Crowd, seed: int = 4) -> Iterator[Due]:
    """Yield the requests of a crowd that does not listen, at even distances."""
    dice = random.Random(seed)
    times = (
        crowd.start + number / crowd.rate for number in range(int(crowd.rate * (crowd.end - crowd.start)))
    )
    return _customers(times, dice) if crowd.name == CUSTOMERS else _flood(times, dice)


def sign_of_life(at: float, action: str) -> Due:
    """Return a request of the heedful client: cheap to answer as a probe is, and limited as that is not."""
    return Due(at, action, "GET", "/ping", HEEDFUL, "198.19.0.2")


def _flood(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for at in times:
        path = f"/product/{dice.choice(_PRODUCTS)}?currency={dice.choice(_CURRENCIES)}"
        yield Due(at, "browse", "GET", path, FLOOD, "198.19.0.1")


def _customers(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    """Yield what customers do.

    The mix is dealt from a shuffled deck, so that every 19 requests hold exactly one checkout, and somebody
    who checks out has filled a cart before.
    """
    deck: list[str] = []
    filled: deque[int] = deque()
    for at in times:
        if not deck:
            deck = [action for action, times_dealt in MIX.items() for _ in range(times_dealt)]
            dice.shuffle(deck)
        action = deck.pop()
        if action == "checkout" and not filled:
            action = "add to cart"
        yield _customer(at, action, dice, filled)


def _customer(at: float, action: str, dice: random.Random, filled: deque[int]) -> Due:
    user, product = dice.randrange(1000), dice.choice(_PRODUCTS)
    if action == "checkout":
        user = filled.popleft()
    elif action == "add to cart" and user not in filled:
        filled.append(user)
    method, path = {
        "home": ("GET", "/"),
        "browse": ("GET", f"/product/{product}"),
        "set currency": ("POST", "/currency"),
        "view cart": ("GET", "/cart"),
        "add to cart": ("POST", "/cart"),
        "checkout": ("POST", "/checkout"),
    }[action]
    query = {"user": f"user-{user}", "currency": dice.choice(_CURRENCIES)}
    if action == "add to cart":
        query["product"] = product
    # Addresses that are set aside for measurements (RFC 2544): they belong to nobody.
    return Due(
        at, action, method, f"{path}?{urlencode(query)}", CUSTOMERS, f"198.18.{user >> 8}.{user & 255}"
    )
