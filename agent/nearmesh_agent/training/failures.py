"""What goes wrong at a site, and the little of it that leaves the site: a class's name and a fixed sentence.

Messages of these errors name files, columns and rows, for the operator's log; data and their names are the site's own.
"""

from __future__ import annotations

from nearmesh.errors import MeshError, NotInstalled


class NoData(MeshError):
    """The operator of this site gave no data for the model."""

    reason = "NO_DATA"
    outside = "this site has no data for the model"


class DataError(MeshError):
    """The site's data cannot be read, or not as the configuration says; the message names file, column and row."""

    reason = "DATA"
    outside = "the data at this site cannot be used; the site's log says why"


class RecipeError(MeshError):
    """The recipe of the package lacks something, or gives what it must not."""

    reason = "RECIPE"
    outside = "the recipe does not keep its contract; the site's log says how"


class Diverged(MeshError):
    """Parameters, a loss or the judged metric are no finite numbers."""

    reason = "DIVERGED"
    outside = "training or evaluation at this site ended in numbers that are not finite"


class GraphError(MeshError):
    """The candidate's graph does not run on this site's data."""

    reason = "GRAPH"
    outside = "the candidate's graph does not run on the data of this site; the site's log says why"


OF_LIBRARIES = (
    (MemoryError, "memory ran out at this site"),
    (NotInstalled, "something is not installed at this site; its log says what"),
)
OTHERWISE = "an error at this site, which its log tells"


def outside(error: BaseException) -> str:
    """What may leave the site: neither the message nor a class that somebody else's code has named."""
    kind = next(cls for cls in type(error).__mro__ if _known(cls))
    said = getattr(kind, "outside", None) or next(
        (text for cls, text in OF_LIBRARIES if issubclass(kind, cls)), OTHERWISE
    )
    return f"{kind.__name__}: {said}"


def _known(cls: type) -> bool:
    return cls.__module__ in ("builtins", __name__, "nearmesh.errors")
