"""Several servers of which one answers: whom to ask now, and whom when that one does not. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Turns:
    """Addresses of control planes, asked in turn. The one that answered is asked until it does not."""

    def __init__(self, addresses: Iterable[str]) -> None:
        """At least one."""
        self._all = list(dict.fromkeys(addresses))
        self._at = 0
        # How many have failed in a row.
        self._failed = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def current(self) -> str:
        return self._all[self._at]

    @property
    def order(self) -> tuple[str, ...]:
        """All of them, the one to ask now first."""
        return (*self._all[self._at :], *self._all[: self._at])

    def answered(self) -> None:
        """The present one is the right one."""
        self._failed = 0

    def failed(self, address: str) -> bool:
        """Turns to the next one, unless others turned away from `address` before. Whether all were asked in vain."""
        if address == self.current:
            self._at = (self._at + 1) % len(self._all)
            self._failed += 1
        return self._failed >= len(self._all)

    def learn(self, addresses: Iterable[str]) -> bool:
        """These are all that there are. Whether that is news; none at all is not."""
        named = list(dict.fromkeys(addresses))
        if not named or set(named) == set(self._all):
            return False
        current = self.current
        self._all = named
        self._at, self._failed = (named.index(current) if current in named else 0), 0
        return True
