"""Amounts of money: which numbers can be one, and what a currency is worth in US dollars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nearmesh.errors import InvalidInput

USD = "USD"
# More than any machine costs in an hour, and than a GB costs to move; what is above it is a slip.
MAX_AMOUNT = 1e6
MAX_CURRENCIES = 200
# Of a wrong currency's name in a message.
MAX_SHOWN = 20

# ISO 4217.
_CURRENCY = re.compile(r"[A-Z]{3}")


class Money(NamedTuple):
    """A price in US dollars, and as it was given."""

    usd: float
    amount: float
    currency: str


@dataclass(frozen=True, slots=True)
class Currencies:
    """What one unit of each currency is worth in US dollars, as mesh.toml says."""

    rates: Mapping[str, float]

    def __post_init__(self) -> None:
        if len(self.rates) > MAX_CURRENCIES:
            raise InvalidInput(f"currencies has {len(self.rates)} entries; at most {MAX_CURRENCIES}")
        for name, rate in self.rates.items():
            if not _CURRENCY.fullmatch(name):
                raise InvalidInput(f"currency {name!r} is not three capital letters, such as EUR")
            if not 0 < rate < MAX_AMOUNT:
                raise InvalidInput(f"currencies.{name} is {rate:g}; expected US dollars for one {name}, above 0")
        if self.rates.get(USD, 1.0) != 1.0:
            raise InvalidInput(f"currencies.{USD} is {self.rates[USD]:g}; all rates are in US dollars, so it is 1")

    def rate(self, currency: str) -> float | None:
        return 1.0 if currency == USD else self.rates.get(currency)

    def money(self, amount: float, currency: str) -> Money:
        """Raises InvalidInput for what is no amount, and for a currency without a rate."""
        rate = self.rate(currency)
        if rate is None:
            known = ", ".join(sorted({USD, *self.rates}))
            raise InvalidInput(
                f"currency {currency[:MAX_SHOWN]!r} has no rate; those with one are {known}: "
                "add it to [currencies] in mesh.toml"
            )
        return Money(check_price(check_amount(amount, currency) * rate), amount, currency)


def check_amount(amount: float, currency: str = USD) -> float:
    """Raises InvalidInput for anything that cannot be a price; nan fails every comparison."""
    if not 0 <= amount < MAX_AMOUNT:
        raise InvalidInput(f"a price of {amount} {currency} is not between 0 and 1,000,000")
    return amount


def check_price(usd_per_hour: float) -> float:
    """Raises InvalidInput for anything that cannot be a price of a machine."""
    if not 0 <= usd_per_hour < MAX_AMOUNT:
        raise InvalidInput(f"a price of {usd_per_hour} US dollars per hour is not between 0 and 1,000,000")
    return usd_per_hour
