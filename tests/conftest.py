"""What several folders of tests share: throw-away PostgreSQL and Milvus servers, and a place for what programs keep."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from tests import milvus_server as milvus
from tests.milvus_server import MilvusServer
from tests.postgres import Postgres, postgres, why_not

# Set where a skipped test would hide something: tests that need PostgreSQL then fail without it.
REQUIRED = "NEARMESH_TEST_POSTGRES"


def pytest_configure() -> None:
    """A shell's background commands ignore SIGINT, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was collected stays to the end: no look for what nobody needs any more has to go through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def database_server() -> Iterator[Postgres]:
    """One server for all tests of a run; each takes a database of its own from it."""
    if why_not():
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(why_not())
        pytest.skip(why_not())
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def milvus_server() -> Iterator[MilvusServer]:
    """One server for the tests of a file; each takes collections of its own.

    It starts in seconds, and uses the processor for as long as it is there, whether it is asked for anything or not.
    """
    if milvus.why_not():
        pytest.skip(milvus.why_not())
    with milvus.milvus_server() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a program keeps for its next start lies in a folder of the test run, not in the user's."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before
