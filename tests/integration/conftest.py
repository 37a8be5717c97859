"""A node with two tiny models, and its clients: what tests of the Open Inference Protocol begin with."""

from __future__ import annotations

import pytest

from tests.integration.oip_client import client_of, stub_of, two_models


@pytest.fixture
async def running(tmp_path):
    async with two_models(tmp_path) as running:
        yield running


@pytest.fixture
async def client(running):
    async with client_of(running) as client:
        yield client


@pytest.fixture
async def stub(running):
    async with stub_of(running) as stub:
        yield stub
