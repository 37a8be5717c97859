"""Where a client is, as the command line takes it: REGION, REGION/SITE, or LATITUDE,LONGITUDE in degrees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.regions import region_near

_DEGREES = r"([+-]?\d+(?:\.\d*)?)"


@dataclass(frozen=True, slots=True)
class Locality:
    """A region by name, or a place by its degrees."""

    region: str = ""
    site: str = ""
    latitude: float | None = None
    longitude: float | None = None

    def __str__(self) -> str:
        if self.latitude is not None:
            return f"{self.latitude:g},{self.longitude:g}"
        return f"{self.region}/{self.site}" if self.site else self.region


class LocalityType(click.ParamType[Locality]):
    """Checks it before anything is asked of the mesh."""

    name = "locality"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Locality:
        if isinstance(value, Locality):
            return value
        try:
            return _parsed(value)
        except InvalidInput as error:
            self.fail(f"{error.message}; expected REGION, REGION/SITE or LATITUDE,LONGITUDE", param, context)


def _parsed(text: str) -> Locality:
    if degrees := re.fullmatch(rf"\s*{_DEGREES}\s*,\s*{_DEGREES}\s*", text):
        latitude, longitude = float(degrees[1]), float(degrees[2])
        region_near(latitude, longitude)
        return Locality(latitude=latitude, longitude=longitude)
    region, slash, site = text.partition("/")
    check_label("region", region)
    return Locality(region, check_label("site", site) if slash else "")
