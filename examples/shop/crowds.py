"""Who asks the shop for what, and when: settled beforehand, so that both runs meet the same."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode

from examples.shop.services.catalogue import PRODUCTS_FILE

CUSTOMERS = "customers"
PREFETCH = "prefetch"
FLOOD = "flood"
HEEDFUL = "heedful"
PROBES = "probes"
REGULARS = "regulars"
NEWCOMERS = "newcomers"
EXPORTS = "exports"
BUYERS = "buyers"

# Whom the shop is there for.
WANTED = {CUSTOMERS, PREFETCH, REGULARS, NEWCOMERS, BUYERS}

# How often a customer does what, of 19 requests: the mix of Online Boutique's own load generator.
MIX = {"home": 1, "set currency": 2, "browse": 10, "add to cart": 2, "view cart": 3, "checkout": 1}
ORDERS = "orders"
PAGES = MIX.keys() - {"checkout"}

_PRODUCTS = [product["id"] for product in json.loads(PRODUCTS_FILE.read_text(encoding="utf-8"))]
_USERS = 1000
_CARTS_AGO = 6
# So many later that the cart is filled then, even where that takes long.
_BUYERS_AGO = 12
_CURRENCIES = ["EUR", "USD", "JPY", "CAD", "GBP", "TRY"]


@dataclass(frozen=True, slots=True)
class Crowd:
    """Some visitors: how many requests a second they make together, from when to when.

    `customers` shop, each from an address of their own; `prefetch` is what their browsers ask for before they
    do, and say so. The `flood` comes from one address and looks at products, whatever it is answered. The
    `heedful` client asks too often as well, but only for a sign of life, and when it is told to come back
    later, it does just that. `probes` ask for a sign of life as an orchestrator does.

    `regulars` look at their orders, and `newcomers` at theirs, of which there are none yet. `exports` have
    the orders handed to the bookkeepers. `buyers` put something in their cart, and check out soon.

    They come at even distances, or at random ones, as people do who do not know of each other.
    """

    name: str
    rate: float
    start: float
    end: float
    at_random: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` writes."""
        name, rate, start, end, *how = text.split(":")
        return cls(name, float(rate), float(start), float(end), how == ["at-random"])

    def __str__(self) -> str:
        how = ":at-random" if self.at_random else ""
        return f"{self.name}:{self.rate}:{self.start}:{self.end}{how}"

    def times(self) -> Iterator[float]:
        """Yield when its requests are due, the same each time."""
        if not self.at_random:
            for number in range(int(self.rate * (self.end - self.start))):
                yield self.start + number / self.rate
            return
        dice, at = random.Random(str(self)), self.start
        while (at := at + dice.expovariate(self.rate)) < self.end:
            yield at


@dataclass(frozen=True, slots=True)
class Due:
    """A request and when it is due, in seconds from the start; `address` is where it comes from."""

    at: float
    action: str
    method: str
    path: str
    crowd: str
    address: str
    fields: tuple[tuple[str, str], ...] = ()


def plan(*crowds: Crowd, seed: int = 4) -> Iterator[Due]:
    """Yield the requests of a crowd that does not listen.

    Several of one name, one after the other, are the same crowd, whose rate changes.
    """
    [name] = {crowd.name for crowd in crowds}
    times = (at for crowd in crowds for at in crowd.times())
    return _PLANS[name](times, random.Random(seed))


def sign_of_life(at: float, action: str) -> Due:
    """Return a request of the heedful client: cheap to answer as a probe is, and limited as that is not."""
    return Due(at, action, "GET", "/ping", HEEDFUL, "198.19.0.2")


def _flood(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for at in times:
        yield Due(at, "browse", "GET", _product_page(dice), FLOOD, "198.19.0.1")


def _prefetch(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    """Yield what browsers ask for ahead of their users; `Sec-Purpose` is the field in which they say so."""
    for at in times:
        address, fields = _address(dice.randrange(_USERS)), (("sec-purpose", "prefetch"),)
        yield Due(at, "prefetch", "GET", _product_page(dice), PREFETCH, address, fields)


def _probes(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for at in times:
        yield Due(at, "probe", "GET", "/healthz", PROBES, "198.19.0.3")


def _regulars(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for at in times:
        user = dice.randrange(_USERS)
        yield Due(at, ORDERS, "GET", f"/orders?user=user-{user}", REGULARS, _address(user))


def _newcomers(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for number, at in enumerate(times):
        yield Due(at, ORDERS, "GET", f"/orders?user=new-{number}", NEWCOMERS, _address(number % _USERS))


def _exports(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    for at in times:
        yield Due(at, "export", "POST", "/export", EXPORTS, "198.19.0.4")


def _buyers(times: Iterator[float], dice: random.Random) -> Iterator[Due]:
    """Yield what they do: a cart is filled, and one that was filled a little before is bought."""
    for number, at in enumerate(times):
        buyer, buys = divmod(number, 2)
        user = buyer - _BUYERS_AGO if buys and buyer >= _BUYERS_AGO else buyer
        query = {"user": f"buyer-{user}", "currency": dice.choice(_CURRENCIES)}
        if user == buyer:
            query["product"] = dice.choice(_PRODUCTS)
        action, path = ("add to cart", "/cart") if user == buyer else ("checkout", "/checkout")
        yield Due(at, action, "POST", f"{path}?{urlencode(query)}", BUYERS, _address(user % _USERS))


def _product_page(dice: random.Random) -> str:
    return f"/product/{dice.choice(_PRODUCTS)}?currency={dice.choice(_CURRENCIES)}"


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
    user, product = dice.randrange(_USERS), dice.choice(_PRODUCTS)
    if action == "checkout":
        # Not the latest, which may be under way still; nor the oldest, for whom things were different.
        place = -min(_CARTS_AGO, len(filled))
        user = filled[place]
        del filled[place]
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
    return Due(at, action, method, f"{path}?{urlencode(query)}", CUSTOMERS, _address(user))


def _address(user: int) -> str:
    """Return one of those set aside for measurements (RFC 2544), which belong to nobody."""
    return f"198.18.{user >> 8}.{user & 255}"


_PLANS: dict[str, Callable[[Iterator[float], random.Random], Iterator[Due]]] = {
    CUSTOMERS: _customers,
    PREFETCH: _prefetch,
    FLOOD: _flood,
    PROBES: _probes,
    REGULARS: _regulars,
    NEWCOMERS: _newcomers,
    EXPORTS: _exports,
    BUYERS: _buyers,
}
