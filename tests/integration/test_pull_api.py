"""The OCI pull API as nodes and people meet it: who is let in, what is sent, and what a wrong question gets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from nearmesh_controlplane.registry.authority import Authority
from prometheus_client.parser import text_string_to_metric_families

from nearmesh.ids import MachineId
from nearmesh.oci import MANIFEST_TYPE, digest_bytes
from nearmesh.packaging.build import Artifact
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import MESH, ControlPlane, control_plane

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def artifact(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A published version."""
    made = adding(tmp_path_factory.mktemp("package"), "adder", "1", 1.0)
    async with plane.operator() as operator:
        await operator.publish(made)
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def puller(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Holds a node's certificate."""
    folder = tmp_path_factory.mktemp("puller")
    credentials = await plane.machine(folder, "puller")
    async with _http(plane, credentials, folder) as found:
        yield found


def _http(plane: ControlPlane, credentials: Credentials, folder: Path, **more: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://{plane.http}", verify=credentials.ssl_context(folder), **more)


def _bare(plane: ControlPlane, token: str | None = None) -> httpx.AsyncClient:
    context = ssl.create_default_context(cadata=plane.authority.ca_pem.decode())
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=f"https://{plane.http}", verify=context, headers=headers)


async def test_a_certificate_pulls_a_version(puller: httpx.AsyncClient, artifact: Artifact) -> None:
    version = await puller.get("/v2/")
    assert version.status_code == 200
    assert version.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    for reference in ("1", artifact.digest):
        manifest = await puller.get(f"/v2/adder/manifests/{reference}")
        assert manifest.content == artifact.manifest_bytes
        assert manifest.headers["Content-Type"] == MANIFEST_TYPE
        assert manifest.headers["Docker-Content-Digest"] == artifact.digest
    for blob in artifact.manifest.blobs:
        answer = await puller.get(f"/v2/adder/blobs/{blob.digest}")
        assert digest_bytes(answer.content) == blob.digest
        assert answer.headers["Content-Type"] == "application/octet-stream"
    assert (await puller.get("/v2/adder/tags/list")).json() == {"name": "adder", "tags": ["1"]}


async def test_a_bearer_token_pulls_too(plane: ControlPlane, artifact: Artifact) -> None:
    async with _bare(plane, plane.token("client")) as http:
        assert (await http.get("/v2/adder/manifests/1")).content == artifact.manifest_bytes


@pytest.mark.parametrize("shown", ["nothing", "noise", "an expired token", "a join token", "basic"])
async def test_who_shows_nothing_that_holds_gets_401(plane: ControlPlane, artifact: Artifact, shown: str) -> None:
    tokens = {
        "noise": "noise",
        "an expired token": plane.token("client", now_s=1000.0),
        "a join token": await plane.join_token("nobody"),
    }
    async with _bare(plane, tokens.get(shown)) as http:
        if shown == "basic":
            http.headers["Authorization"] = "Basic bWU6bWU="
        for path in ("/v2/", "/v2/adder/manifests/1", f"/v2/adder/blobs/{artifact.digest}", "/anything"):
            answer = await http.get(path)
            assert answer.status_code == 401
            (error,) = answer.json()["errors"]
            assert error["code"] == "UNAUTHORIZED" and error["message"]
    await plane.logged("path=/v2/adder/manifests/1")


async def test_a_removed_node_gets_403_on_an_open_connection_too(
    plane: ControlPlane, artifact: Artifact, tmp_path: Path
) -> None:
    credentials = await plane.machine(tmp_path, "former")
    async with _http(plane, credentials, tmp_path) as http:
        assert (await http.get("/v2/adder/manifests/1")).status_code == 200
        async with plane.operator() as operator:
            await operator.remove("former")
        answer = await http.get("/v2/adder/manifests/1")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "DENIED")


async def test_a_certificate_of_another_authority_gets_no_connection(plane: ControlPlane, tmp_path: Path) -> None:
    key, who = new_key(), MachineId(MESH, "node", "puller")
    signed = Authority.open(MESH, tmp_path / "other").sign(certificate_request(key, who), who, timedelta(hours=1))
    foreign = Credentials(key_to_pem(key), signed, plane.authority.ca_pem)
    foreign.write(tmp_path)
    async with _http(plane, foreign, tmp_path) as http:
        with pytest.raises(httpx.HTTPError):
            await http.get("/v2/")


async def test_parts_and_heads_of_blobs(puller: httpx.AsyncClient, artifact: Artifact) -> None:
    blob = max(artifact.manifest.blobs, key=lambda blob: blob.size_bytes)
    url = f"/v2/adder/blobs/{blob.digest}"
    whole = (await puller.get(url)).content
    part = await puller.get(url, headers={"Range": "bytes=5-14"})
    assert (part.status_code, part.content) == (206, whole[5:15])
    assert part.headers["Content-Range"] == f"bytes 5-14/{blob.size_bytes}"
    rest = await puller.get(url, headers={"Range": "bytes=20-"})
    assert (rest.status_code, rest.content) == (206, whole[20:])
    beyond = await puller.get(url, headers={"Range": f"bytes={blob.size_bytes + 1}-"})
    assert beyond.status_code == 416
    for path in (url, "/v2/adder/manifests/1"):
        head = await puller.head(path)
        body = await puller.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(body.content))


async def test_what_the_registry_lacks_and_does_not_do(puller: httpx.AsyncClient, artifact: Artifact) -> None:
    unknown = "sha256:" + "0" * 64
    codes = {"blobs": "BLOB_UNKNOWN", "manifests": "MANIFEST_UNKNOWN", "tags": "NAME_UNKNOWN"}
    for path, status in {
        f"/v2/adder/blobs/{unknown}": 404,
        f"/v2/adder/manifests/{unknown}": 404,
        "/v2/adder/manifests/9": 404,
        f"/v2/nothing/blobs/{artifact.digest}": 404,
        "/v2/nothing/tags/list": 404,
        "/v2/adder/blobs/sha256:short": 400,
        "/v2/adder/blobs/..%2f..%2fstate.db": 404,
        "/v2/adder/blobs/sha256:..%2f..%2f..%2f..%2fstate.db": 404,
        "/elsewhere": 404,
    }.items():
        answer = await puller.get(path)
        assert (path, answer.status_code) == (path, status)
        (error,) = answer.json()["errors"]
        assert error["code"] and error["message"]
        kind = path.split("/")[3] if path.count("/") == 4 and "%" not in path else ""
        assert status != 404 or error["code"] == codes.get(kind, error["code"])
    refused = await puller.put("/v2/adder/manifests/2", content=b"{}")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")


async def test_prometheus_reads_the_metrics_with_a_token_or_a_certificate(
    plane: ControlPlane, puller: httpx.AsyncClient
) -> None:
    async with _bare(plane, plane.token("client")) as person, _bare(plane) as nobody:
        for http in (puller, person):
            page = await http.get("/metrics")
            assert page.status_code == 200 and page.headers["Content-Type"].startswith("text/plain")
            found = {family.name: family for family in text_string_to_metric_families(page.text)}
            assert found["nearmesh_leading"].samples[0].value == 1
            assert found["nearmesh_xds_streams"].samples[0].value == 0
            assert found["process_resident_memory_bytes"].samples[0].value > 0
        assert (await nobody.get("/metrics")).status_code == 401
