"""What an inference costs, and how a price is written."""

from __future__ import annotations

import math

PRICE_DIGITS = 4
_BYTES_PER_GB = 1e9


def usd_per_1000(usd_per_hour: float, inferences_per_second: float) -> float:
    """The price of 1,000 inferences on a node that does nothing else."""
    return 1000 * usd_per_hour / (3600 * inferences_per_second)


def transfer_usd_per_1000(usd_per_gb: float, request_bytes: float, response_bytes: float) -> float:
    """What moving 1,000 requests and their answers between two regions costs."""
    return 1000 * usd_per_gb * (request_bytes + response_bytes) / _BYTES_PER_GB


def format_usd(value: float) -> str:
    """A price with four significant digits and no exponent; free is 0, unknown is '?'."""
    if value <= 0 or not math.isfinite(value):
        return "0" if value <= 0 else "?"
    return f"{value:.{max(0, PRICE_DIGITS - 1 - math.floor(math.log10(value)))}f}"
