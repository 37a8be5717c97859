"""`oci://HOST[:PORT]/NAME[:TAG|@DIGEST]`: where a version lies in a registry."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from nearmesh.addresses import split
from nearmesh.errors import InvalidInput
from nearmesh.ids import check_digest

SCHEME = "oci://"

# As the distribution specification has them.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry, a name there, and a tag, a digest or neither."""

    host: str
    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises InvalidInput."""
        host, _, rest = text.removeprefix(SCHEME).partition("/")
        rest, at, digest = rest.partition("@")
        name, colon, tag = rest.partition(":")
        sound = text.startswith(SCHEME) and _HOST.fullmatch(host) and len(name) < 256 and _NAME.fullmatch(name)
        if not sound or (colon and not _TAG.fullmatch(tag)):
            raise InvalidInput(f"{text!r} is not {SCHEME}HOST[:PORT]/NAME[:TAG], in small letters but for the tag")
        return cls(host, name, tag, check_digest(digest) if at else "")

    @property
    def wanted(self) -> str:
        """By which the manifest is asked for."""
        return self.digest or self.tag or "latest"

    @property
    def url(self) -> str:
        """The registry's address: plain HTTP on this machine alone, as Docker does."""
        return f"{'http' if _is_here(self.host) else 'https'}://{self.host}"

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.wanted}")


def check_repository(url: str) -> str:
    """Returns `url` if it is "http(s)://HOST[:PORT]/NAME". Raises InvalidInput."""
    scheme, _, rest = url.partition("://")
    found = Reference.parse(SCHEME + rest) if scheme in ("http", "https") else None
    if found is None or rest != f"{found.host}/{found.name}":
        raise InvalidInput(f"{url!r} is not such as https://registry.example.net/team/model")
    return url


def tag_of(version: str) -> str:
    """A version's name as a tag: what tags may not have becomes '_'."""
    return version.replace("+", "_")


def _is_here(host: str) -> bool:
    name = split(host)[0] if re.search(r":[0-9]+$", host) else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"
