"""The control plane's own certificate, as its listeners show it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from nearmesh.tls import Credentials
from nearmesh_controlplane.registry.authority import Authority

log = logging.getLogger(__name__)

# After a renewal that failed; a third of the certificate's life is left for it.
RENEW_AGAIN_S = 60.0


class ServerCertificate:
    """Made at the start, and again when two thirds of its life are over."""

    def __init__(self, authority: Authority, folder: Path, host: str) -> None:
        """Keeps it in `folder`; `host` is where clients reach the control plane."""
        self._authority = authority
        self._host = host
        self.folder = folder
        self._not_before = 0.0
        self.renew()

    def renew(self, take_over: Callable[[], None] = lambda: None) -> None:
        """Makes and writes a new one and has it taken over; it is `current` when all of that went well."""
        fresh = self._authority.server_credentials([self._host])
        fresh.write(self.folder)
        take_over()
        self.current: Credentials = fresh

    def keep_young(self, take_over: Callable[[], None]) -> None:
        """Renews when it is time to. A full disk must not end the control plane: it is tried again later."""
        if self.current.renew_in_s() or time.monotonic() < self._not_before:
            return
        try:
            self.renew(take_over)
        except OSError as error:
            self._not_before = time.monotonic() + RENEW_AGAIN_S
            log.error("the server's certificate, which ends %s, was not renewed: %s", self.current.expires_at, error)
        else:
            log.info("the server's certificate was renewed until=%s", self.current.expires_at)
