"""Whose vectors a caller reaches, and how often it may ask. Pure.

A token that names a namespace reaches that one alone. Without one, clients and data teams have "default", and operators
name any. The agent decides it from who calls, and tells the process that keeps the vectors in metadata, so that a
request travels on as the bytes that came.
"""

from __future__ import annotations

from collections.abc import Iterable

from nearmesh.errors import InvalidInput, PermissionDenied, QuotaExceeded
from nearmesh.ids import check_label
from nearmesh.rpc import Identity

# Metadata from the agent to its vector process, and from node to node: the namespace of the caller, or ANY.
KEY = "nearmesh-namespace"
ANY = "*"
DEFAULT = "default"

# Roles that may write to what they reach; others may ask.
WRITERS = frozenset({"data", "operator"})


def reach_of(who: Identity) -> str:
    """What a person's token reaches: one namespace, or ANY."""
    if who.namespace:
        return who.namespace
    return ANY if who.role == "operator" else DEFAULT


def told(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """What another process of the mesh says that its caller reaches. Raises InvalidInput where it says nothing."""
    for key, value in metadata or ():
        if key == KEY and value:
            return str(value)
    raise InvalidInput(f"metadata {KEY!r} is missing: whose vectors?")


def chosen(reach: str, asked: str) -> str:
    """The namespace of a call. Raises PermissionDenied, and InvalidInput for what is no name."""
    if reach == ANY:
        return check_label("namespace", asked) if asked else DEFAULT
    if asked not in ("", reach):
        raise PermissionDenied(f"this token reaches the namespace {reach!r}, not {asked[:64]!r}")
    return reach


class Rate:
    """Calls of one namespace: `per_s` of them, and a second's worth at once. 0: as many as come."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s)
        self._left = self._most
        self._at_s = float("-inf")
        # A second with its calls, and those of the second before it.
        self._counted: tuple[int, int, int] = (0, 0, 0)

    def take(self, now_s: float, namespace: str) -> None:
        """One call more. Raises QuotaExceeded that says when to come again."""
        if self.per_s:
            self._left = min(self._most, self._left + (now_s - self._at_s) * self.per_s)
            self._at_s = now_s
            if self._left < 1:
                wait_ms = int(1000 * (1 - self._left) / self.per_s) + 1
                raise QuotaExceeded(
                    f"namespace {namespace!r} may ask {self.per_s:g} times a second on this node",
                    retry_after_ms=wait_ms,
                )
            self._left -= 1
        self._count(int(now_s))

    def lately(self, now_s: float) -> float:
        """Calls in the last whole second."""
        return float(self._at(int(now_s))[2])

    def _count(self, second: int) -> None:
        second, count, before = self._at(second)
        self._counted = (second, count + 1, before)

    def _at(self, second: int) -> tuple[int, int, int]:
        current, count, _ = self._counted
        return self._counted if second == current else (second, 0, count if second == current + 1 else 0)
