"""Which version may have ended the process: a note on disk before it is loaded, and while it has to prove itself.

A native crash, an abort and the system's killing for memory leave no time to say anything, so whoever starts again
finds the note alone. A version that is suspected too often is not tried again until it is asked for anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from nearmesh.tls import write_private
from nearmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

# What a version was doing when the process ended.
LOADING, ON_TRIAL, NEW_HERE = "was loading", "was on trial", "was new here"
# Ends of the process after which a version is not tried any more. One, where another version serves and this one never
# did: its callers are not made to wait for one crash after the other. More, where it has served before, since somebody
# may have killed the process; and more still, where it is all that there is.
ONE, SEVERAL, MANY = 1, 3, 5
# After so long it is not new any more. Requests come within seconds of a swap.
NEW_FOR_S = 20.0


@dataclass(slots=True)
class _Case:
    """What is held against one version."""

    # Which rollout asked for it.
    rollout: str
    doing: str
    most: int
    # It is at it now.
    at_it: bool = True
    # Ends of the process while it was.
    ends: int = 0


class Crashes:
    """The notes of one node. Every change is on disk when the call returns, unless the disk refuses it."""

    def __init__(self, path: Path) -> None:
        """A note that is still open is of a process that came to no orderly end."""
        self._path = path
        # By digest.
        self._cases, self._proven = _read(path)
        ended = [(digest, case) for digest, case in self._cases.items() if case.at_it]
        for digest, case in ended:
            case.at_it, case.ends = False, case.ends + 1
            log.warning("the process ended while digest=%s %s, %s of %s", digest, case.doing, case.ends, case.most)
        if ended:
            self._write()

    def against(self, version: pb.WantedVersion) -> str:
        """Why this version is not tried; "" where it may be."""
        case = self._cases.get(version.digest)
        if case is None or case.ends < case.most:
            return ""
        times = f", {case.ends} times in a row" if case.ends > 1 else ""
        return f"the process ended while this version {case.doing}{times}; it is tried again when it is asked for anew"

    def begin(self, version: pb.WantedVersion, doing: str, most: int) -> None:
        """From now on an end of the process is held against it."""
        before = self._cases.get(version.digest)
        self._cases[version.digest] = _Case(version.rollout, doing, most, ends=before.ends if before else 0)
        self._write()

    def over(self, digest: str) -> None:
        """It is not at it any more; what was held against it before stays."""
        case = self._cases.get(digest)
        if case and case.at_it:
            case.at_it = False
            if not case.ends:
                del self._cases[digest]
            self._write()

    def proven(self, digest: str) -> bool:
        """It has once served long enough to be trusted."""
        return digest in self._proven

    def prove(self, digest: str) -> None:
        """It has served long enough: nothing is held against it."""
        if digest in self._cases or digest not in self._proven:
            self._cases.pop(digest, None)
            self._proven.add(digest)
            self._write()

    def asked(self, versions: Iterable[pb.WantedVersion], needed: Iterable[str]) -> None:
        """Forgets what is held against versions that are not wanted, or that another rollout asks for."""
        rollouts = {version.digest: version.rollout for version in versions}
        gone = [
            digest
            for digest, case in self._cases.items()
            if (not case.at_it and digest not in rollouts) or anew(case.rollout, rollouts.get(digest, ""))
        ]
        forgotten = self._proven - {*needed}
        for digest in gone:
            del self._cases[digest]
        self._proven -= forgotten
        if gone or forgotten:
            self._write()

    def end(self) -> None:
        """The process ends in order: nobody is to blame."""
        for digest in list(self._cases):
            self.over(digest)

    def _write(self) -> None:
        body = {
            "cases": {digest: asdict(case) for digest, case in self._cases.items()},
            "proven": sorted(self._proven),
        }
        try:
            write_private(self._path, json.dumps(body, indent=1).encode())
        except OSError as error:
            log.warning("%s cannot be written, a crash would not be told from a restart: %s", self._path, error)


def anew(before: str, rollout: str) -> bool:
    """Whether a version that failed for the rollout `before` is asked for by another one."""
    return bool(rollout) and rollout != before


def _read(path: Path) -> tuple[dict[str, _Case], set[str]]:
    try:
        body = json.loads(path.read_bytes())
        return {digest: _Case(**case) for digest, case in body["cases"].items()}, set(body["proven"])
    except FileNotFoundError:
        return {}, set()
    except (ValueError, TypeError, KeyError, AttributeError):
        log.warning("%s is damaged and will be written anew", path)
        return {}, set()
