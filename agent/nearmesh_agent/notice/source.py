"""The seam: who may bring a notice, which of them a node listens to, and how it waits for the first word.

A source of one's own is any class with `notice`, named in node.toml as `[notice] source = "package.module:Class"`; it
is made with the table's `NoticeConfig`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
from collections.abc import Iterable
from typing import Protocol

from nearmesh.errors import ConfigError
from nearmesh_agent.config import NoticeConfig
from nearmesh_agent.notice.file import FileNotice
from nearmesh_agent.notice.notice import Notice, said

log = logging.getLogger(__name__)


class NoticeSource(Protocol):
    """One way in which a machine hears that it is about to be taken away."""

    async def notice(self) -> Notice:
        """Returns when it is, and not before. What makes no sense is logged, and waited past."""
        ...


def sources(config: NoticeConfig) -> list[NoticeSource]:
    """Those that node.toml names. Raises ConfigError."""
    found: list[NoticeSource] = []
    if config.file:
        found.append(FileNotice(config.file, every_s=config.every_s, default_s=config.default_s))
    if config.metadata or config.url:
        # An HTTP client takes a tenth of a node's start to import, and most nodes ask nobody.
        from nearmesh_agent.notice.metadata import PRESETS, MetadataNotice, plain

        preset = PRESETS[config.metadata] if config.metadata else plain(config.default_s)
        found.append(MetadataNotice(preset, config.url or preset.base, every_s=config.every_s))
    if config.source:
        found.append(_made(config))
    return found


def _made(config: NoticeConfig) -> NoticeSource:
    module, _, name = config.source.partition(":")
    try:
        source: NoticeSource = getattr(importlib.import_module(module), name)(config)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"[notice] source = {config.source!r}: {error}; expected package.module:Class") from None
    if not callable(getattr(source, "notice", None)):
        raise ConfigError(f"[notice] source = {config.source!r} has no method `notice`")
    return source


async def first_notice(found: Iterable[NoticeSource]) -> Notice:
    """The first word of any source; waits for ever where there is none. One that fails is left out, with a line in the
    log: whoever cannot be asked does not end a node."""
    waiting = {asyncio.create_task(_heard(source), name=f"notice {type(source).__name__}") for source in found}
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (notice := task.result()) is not None:
                    return notice
    finally:
        for task in waiting:
            task.cancel()
    never: asyncio.Future[Notice] = asyncio.get_running_loop().create_future()
    return await never


async def _heard(source: NoticeSource) -> Notice | None:
    name = type(source).__name__
    try:
        notice = await source.notice()
        left_s = float(notice.left_s)
        reason = said(notice.reason)
    except Exception:  # somebody else's code; the node goes on without it
        log.exception("the source of notices %s failed; the node serves on and no longer listens to it", name)
        return None
    if not (math.isfinite(left_s) and left_s >= 0):
        log.error("the source of notices %s gave %r seconds; it is not listened to any longer", name, left_s)
        return None
    return Notice(reason=reason, left_s=left_s)
