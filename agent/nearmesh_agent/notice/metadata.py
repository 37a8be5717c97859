"""A notice from a metadata service: the clouds' own, or any URL that answers with one.

What each cloud serves is public: "Spot Instance interruption notices" and IMDSv2 (AWS), "Detect preemption" (Google
Cloud), "Scheduled Events" (Azure). Times are held against the answer's own Date, so this machine's clock plays no part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from nearmesh_agent.notice.notice import (
    MAX_BYTES,
    Announced,
    NoNotice,
    Notice,
    decoded,
    instant,
    judged,
    loaded,
    parse,
    said,
)

log = logging.getLogger(__name__)

# A metadata service is on the machine's own host; who takes longer, also byte by byte, is asked again.
ANSWER_WITHIN_S = 2.0
# What the clouds promise where the answer itself names no time.
GOOGLE_S, AZURE_S = 30.0, 30.0
_NOT_YET = (204, 404)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, and what stands around it."""

    content: bytes
    # The service's own clock.
    now_s: float
    # What was asked for first, such as this machine's name.
    first: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    # Headers without which an answer comes from somebody else.
    expected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How one service is asked, and how its answer is read."""

    base: str
    ask: Ask
    read: Callable[[Said], Announced | None]
    # Asked once, for a token or a name.
    first: Ask | None = None
    # The header in which the token goes along.
    token_header: str = ""


def _aws(said_: Said) -> Announced | None:
    found = loaded(decoded(said_.content))
    if "time" not in found:
        raise NoNotice("an instance action without a time")
    return Announced(reason=f"AWS: {said(found.get('action'))}", at_s=instant(found["time"]))


def _google(said_: Said) -> Announced | None:
    word = decoded(said_.content).strip()
    if word == "FALSE":
        return None
    if word != "TRUE":
        raise NoNotice(f"{word[:50]!r} is neither TRUE nor FALSE")
    return Announced(reason="Google Cloud: preempted", at_s=said_.now_s + GOOGLE_S)


def _azure(said_: Said) -> Announced | None:
    """The first pre-emption of this machine; events of the machines beside it are listed as well."""
    events = loaded(decoded(said_.content)).get("Events", [])
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict) or event.get("EventType") not in ("Preempt", "Terminate"):
            continue
        resources = event.get("Resources")
        if isinstance(resources, list) and said_.first in resources:
            at = event.get("NotBefore")
            # Empty once it has begun.
            at_s = instant(at) if at else said_.now_s
            return Announced(reason=f"Azure: {said(event['EventType'])}", at_s=at_s)
    return None


PRESETS: Mapping[str, Preset] = {
    "aws": Preset(
        base="http://169.254.169.254",
        first=Ask(path="/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"}),
        token_header="X-aws-ec2-metadata-token",
        ask=Ask(path="/latest/meta-data/spot/instance-action"),
        read=_aws,
    ),
    "gcp": Preset(
        base="http://metadata.google.internal",
        # Without wait_for_change: a connection that hangs tells nothing, and a second of thirty is little.
        ask=Ask(
            path="/computeMetadata/v1/instance/preempted",
            headers={"Metadata-Flavor": "Google"},
            expected={"Metadata-Flavor": "Google"},
        ),
        read=_google,
    ),
    "azure": Preset(
        base="http://169.254.169.254",
        first=Ask(
            path="/metadata/instance/compute/name?api-version=2021-02-01&format=text", headers={"Metadata": "true"}
        ),
        ask=Ask(path="/metadata/scheduledevents?api-version=2020-07-01", headers={"Metadata": "true"}),
        read=_azure,
    ),
}


def plain(default_s: float) -> Preset:
    """For any URL whose answer reads as a notice in a file does; 204, 404 and an empty answer are none."""

    def read(said_: Said) -> Announced | None:
        if not said_.content.strip():
            return None
        return parse(said_.content, written_s=said_.now_s, default_s=default_s)

    return Preset(base="", ask=Ask(path=""), read=read)


class MetadataNotice:
    """Asks again and again. Redirects, proxies and compression play no part: the service is next to the machine."""

    def __init__(self, preset: Preset, base: str, *, every_s: float, clock: Callable[[], float] = time.time) -> None:
        self._preset = preset
        self._base = base.rstrip("/") if preset.ask.path else base
        self._every_s = every_s
        self._clock = clock
        # What was asked for first.
        self._first = ""
        self._said = ""

    async def notice(self) -> Notice:
        async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN_S) as client:
            while True:
                if found := await self.look(client):
                    return found
                await asyncio.sleep(self._every_s)

    async def look(self, client: httpx.AsyncClient) -> Notice | None:
        """What the service says now."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                announced, now_s = await self._announced(client)
            found = judged(announced, now_s=now_s) if announced else None
            self._tell("" if announced is None or found else f"{announced.reason!r} is far off")
            return found
        except NoNotice as error:
            self._tell(error.message)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, OSError) as error:
            self._tell(f"{type(error).__name__}: {error}")
        return None

    def _tell(self, what: str) -> None:
        """Each thing once, not every second."""
        kind = what.split(" was due")[0]
        if kind != self._said:
            self._said = kind
            if what:
                log.warning("no notice from %s: %s", self._base, what)

    async def _announced(self, client: httpx.AsyncClient) -> tuple[Announced | None, float]:
        """Raises NoNotice, httpx.HTTPError."""
        preset = self._preset
        if preset.first and not self._first:
            status, content, _ = await self._asked(client, preset.first)
            if status != 200:
                raise NoNotice(f"{preset.first.path} answers {status}")
            self._first = decoded(content).strip()
            if not self._first.isprintable() or not 0 < len(self._first) <= 1024:
                self._first = ""
                raise NoNotice(f"{preset.first.path} answers with no word")
        more = {preset.token_header: self._first} if preset.token_header else {}
        status, content, now_s = await self._asked(client, preset.ask, more)
        if status in _NOT_YET:
            return None, now_s
        if status != 200:
            # A token that has expired is asked for anew.
            self._first = ""
            raise NoNotice(f"{preset.ask.path or self._base} answers {status}")
        return preset.read(Said(content=content, now_s=now_s, first=self._first)), now_s

    async def _asked(
        self, client: httpx.AsyncClient, ask: Ask, more: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, float]:
        headers = {"accept-encoding": "identity", **ask.headers, **(more or {})}
        content = bytearray()
        async with client.stream(ask.method, self._base + ask.path, headers=headers) as response:
            for name, value in ask.expected.items():
                if response.status_code == 200 and response.headers.get(name) != value:
                    raise NoNotice(f"an answer without {name}: {value}, so not from the metadata service")
            async for part in response.aiter_raw():
                content += part
                if len(content) > MAX_BYTES:
                    raise NoNotice(f"an answer of more than {MAX_BYTES} bytes")
            return response.status_code, bytes(content), self._now_s(response.headers)

    def _now_s(self, headers: Any) -> float:
        """By the service's clock; by this machine's, where it does not say."""
        try:
            return instant(headers["date"])
        except (KeyError, NoNotice):
            return self._clock()
