"""The error tree: what stands on the wire must name one class, and the same one for ever."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from nearmesh import errors
from nearmesh.errors import MeshError, error_classes

# Reasons are compared by clients that we do not know: they are never renamed.
ON_THE_WIRE = {
    "INTERNAL": StatusCode.INTERNAL,
    "INVALID_INPUT": StatusCode.INVALID_ARGUMENT,
    "INCOMPLETE": StatusCode.FAILED_PRECONDITION,
    "CONFIG": StatusCode.INVALID_ARGUMENT,
    "PACKAGE": StatusCode.INVALID_ARGUMENT,
    "TOO_LARGE": StatusCode.RESOURCE_EXHAUSTED,
    "NOT_FOUND": StatusCode.NOT_FOUND,
    "ALREADY_EXISTS": StatusCode.ALREADY_EXISTS,
    "UNAUTHENTICATED": StatusCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": StatusCode.PERMISSION_DENIED,
    "JOIN_REFUSED": StatusCode.PERMISSION_DENIED,
    "NOT_READY": StatusCode.UNAVAILABLE,
    "DRAINING": StatusCode.UNAVAILABLE,
    "NO_ROUTE": StatusCode.UNAVAILABLE,
    "UNREACHABLE": StatusCode.UNAVAILABLE,
    "NOT_LEADER": StatusCode.UNAVAILABLE,
    "OVERLOADED": StatusCode.RESOURCE_EXHAUSTED,
    "QUOTA_EXCEEDED": StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_EXCEEDED": StatusCode.DEADLINE_EXCEEDED,
    "SEQUENCE_LOST": StatusCode.ABORTED,
    "SUPERSEDED": StatusCode.ABORTED,
    "UNSUPPORTED": StatusCode.UNIMPLEMENTED,
    "DIGEST_MISMATCH": StatusCode.DATA_LOSS,
    "SIGNATURE": StatusCode.DATA_LOSS,
    "SNAPSHOT_REFUSED": StatusCode.DATA_LOSS,
    "SNAPSHOT_EXPIRED": StatusCode.UNAVAILABLE,
    "WARMUP_FAILED": StatusCode.FAILED_PRECONDITION,
    "NOT_INSTALLED": StatusCode.FAILED_PRECONDITION,
    "ENGINE_FAILURE": StatusCode.INTERNAL,
    "ALREADY_RUNNING": StatusCode.ALREADY_EXISTS,
    "STORAGE_FULL": StatusCode.RESOURCE_EXHAUSTED,
}


def test_reasons_and_statuses_stay_what_they_are() -> None:
    known = {reason: cls.status for reason, cls in error_classes().items() if cls.__module__ == errors.__name__}
    assert known == ON_THE_WIRE


def test_every_class_of_the_tree_has_a_reason_of_its_own() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, MeshError)]
    assert len({cls.reason for cls in classes}) == len(classes) == len(ON_THE_WIRE)


def test_a_class_made_elsewhere_does_not_take_its_bases_place() -> None:
    class Local(errors.Unreachable):
        """Known on one side of the wire only."""

    assert error_classes()["UNREACHABLE"] is errors.Unreachable
    assert Local("x").reason == "UNREACHABLE"


@pytest.mark.parametrize("cls", list(error_classes().values()))
def test_an_error_is_its_message(cls: type[MeshError]) -> None:
    error = cls("what was wrong", retry_after_ms=7)
    assert (str(error), error.message, error.retry_after_ms) == ("what was wrong", "what was wrong", 7)
    assert cls("x").retry_after_ms is None
