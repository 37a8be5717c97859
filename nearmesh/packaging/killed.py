"""A helper process that was ended from outside says nothing of the package: it may be asked again."""

from __future__ import annotations

import signal

from nearmesh.errors import MeshError

# Whoever runs out of memory, or is told to go, ends so; one that crashes of what it was given ends otherwise.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class Killed(MeshError):
    """A process that was to make or try a variant was ended by somebody else."""


def check_not_killed(what: str, returncode: int | None) -> None:
    """Raises Killed."""
    if returncode in _FROM_OUTSIDE:
        raise Killed(f"{what} was ended from outside (signal {-returncode}); short of memory, the system does that")
