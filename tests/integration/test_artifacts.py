"""Published versions as other tools meet them: oras, skopeo, Debian's docker-registry; and how little is sent twice."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from nearmesh import signature
from nearmesh.chunks import ChunkIndex
from nearmesh.cli.main import main
from nearmesh.errors import InvalidInput
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE, digest_bytes, digest_file
from nearmesh.packaging.build import Artifact
from nearmesh.v1 import node_pb2
from nearmesh.v1.node_pb2_grpc import NodeServiceStub
from tests.docker_registry import docker_registry, program
from tests.integration.adding_model import adding, tuned
from tests.integration.mesh_processes import MESH, ControlPlane, control_plane, node

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Of a first pull, what a version with another head may move.
LARGEST_SHARE = 0.2
PROGRAM_LIMIT_S = 60.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def artifact(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A published version of some megabytes."""
    made = tuned(tmp_path_factory.mktemp("package"), "1")
    async with plane.operator() as operator:
        await operator.publish(made)
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def registry(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


async def sent(plane: ControlPlane, made: Artifact) -> int:
    """Publishes; how many bytes went over the connection."""
    told = [(0, 0)]
    async with plane.operator() as operator:
        await operator.publish(made, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    return told[-1][0]


def http(plane: ControlPlane, **headers: str) -> httpx.AsyncClient:
    import ssl

    context = ssl.create_default_context(cadata=plane.authority.ca_pem.decode())
    shown = headers or {"Authorization": f"Bearer {plane.token()}"}
    return httpx.AsyncClient(base_url=f"https://{plane.http}", verify=context, headers=shown)


async def run(plane: ControlPlane, *arguments: str) -> Result:
    """One command of an operator."""
    ca = str(plane.data / "authority" / "ca.pem")
    where = ("--control-plane", plane.public, "--ca", ca, "--token", plane.token("operator"))
    return await asyncio.to_thread(CliRunner().invoke, main, [*where, *arguments])


async def done(plane: ControlPlane, *arguments: str) -> Any:
    result = await run(plane, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def refused(plane: ControlPlane, *arguments: str) -> str:
    result = await run(plane, *arguments)
    assert result.exit_code == 1, result.output
    return result.stderr


def stored(plane: ControlPlane, digest: str) -> Path:
    return plane.data / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")


# ---- what is sent


async def test_a_version_with_another_head_sends_little(
    plane: ControlPlane, artifact: Artifact, tmp_path: Path
) -> None:
    second = tuned(tmp_path, "2")
    moved = await sent(plane, second)
    assert 150_000 < moved <= LARGEST_SHARE * second.manifest.size_bytes
    for blob in second.manifest.blobs:
        assert digest_file(stored(plane, blob.digest)) == blob.digest
    assert await sent(plane, second) == 0


async def test_another_model_shares_the_chunks_too(plane: ControlPlane, artifact: Artifact, tmp_path: Path) -> None:
    made = tuned(tmp_path, "1", "other-name")
    assert await sent(plane, made) <= LARGEST_SHARE * made.manifest.size_bytes


async def test_where_the_older_file_is_damaged_all_is_sent(plane: ControlPlane, tmp_path: Path) -> None:
    # With a body of their own, so that no other version has their chunks.
    body = np.random.default_rng(4).bytes(3_000_000)
    one, two = (tuned(tmp_path / version, version, "damaged", body) for version in ("1", "2"))
    await sent(plane, one)
    weights = next(file for file in one.manifest.files if file.title == "fp32.onnx")
    path = stored(plane, weights.digest)
    data = bytearray(path.read_bytes())
    data[1_000_000] ^= 1
    path.write_bytes(data)
    assert await sent(plane, two) == two.manifest.size_bytes
    for blob in two.manifest.blobs:
        assert digest_file(stored(plane, blob.digest)) == blob.digest
    # And the damaged file itself is replaced by who publishes it again.
    assert await sent(plane, one) > 0 and digest_file(path) == weights.digest


# ---- what is served


async def test_a_signature_is_found_as_cosign_and_oras_look_for_it(plane: ControlPlane, artifact: Artifact) -> None:
    async with http(plane) as client:
        found = await client.get(f"/v2/tuned/manifests/{signature.tag(artifact.digest)}")
        assert (found.status_code, found.headers["Content-Type"]) == (200, MANIFEST_TYPE)
        ((layer, signed),) = signature.signatures(found.content)
        payload = (await client.get(f"/v2/tuned/blobs/{layer.digest}")).content
        config = json.loads(found.content)["config"]["digest"]
        assert digest_bytes((await client.get(f"/v2/tuned/blobs/{config}")).content) == config
        signature.check([plane.authority.model_key_pem], artifact.digest, payload, signed)
        assert json.loads(payload)["critical"]["identity"]["docker-reference"] == f"{MESH}/tuned"
        url = f"/v2/tuned/referrers/{artifact.digest}"
        index = await client.get(url)
        assert index.headers["Content-Type"] == INDEX_TYPE
        (entry,) = index.json()["manifests"]
        assert entry["digest"] == digest_bytes(found.content) and entry["artifactType"] == signature.ARTIFACT_TYPE
        assert (await client.get(f"/v2/tuned/manifests/{entry['digest']}")).content == found.content
        for kind, count in ((signature.ARTIFACT_TYPE, 1), ("application/spdx+json", 0)):
            filtered = await client.get(url, params={"artifactType": kind})
            assert len(filtered.json()["manifests"]) == count
            assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
        nobody = await client.get(f"/v2/tuned/referrers/{entry['digest']}")
        assert (nobody.status_code, nobody.json()["manifests"]) == (200, [])
        for wrong in ("sha256-" + "0" * 64 + ".sig", "sha256-1.sig"):
            assert (await client.get(f"/v2/tuned/manifests/{wrong}")).status_code == 404


async def test_a_signature_that_is_not_there_yet_is_made(plane: ControlPlane, tmp_path: Path) -> None:
    """As of versions that were published before there were signatures."""
    made = tuned(tmp_path, "1", "unsigned")
    await sent(plane, made)
    async with http(plane) as client:
        url = f"/v2/unsigned/manifests/{signature.tag(made.digest)}"
        first = (await client.get(url)).content
        ((layer, _),) = signature.signatures(first)
    await plane.kill()
    for digest in (layer.digest, digest_bytes(first)):
        stored(plane, digest).unlink()
    await plane.start()
    async with http(plane) as client:
        assert (await client.get(f"/v2/unsigned/blobs/{layer.digest}")).status_code == 200
        assert (await client.get(url)).content == first


async def test_parts_and_what_somebody_has_already(plane: ControlPlane, artifact: Artifact) -> None:
    weights = next(file for file in artifact.manifest.files if file.title == "fp32.onnx")
    url, tag = f"/v2/tuned/blobs/{weights.digest}", f'"{weights.digest}"'
    data = stored(plane, weights.digest).read_bytes()
    async with http(plane) as client:
        whole = await client.get(url)
        assert (whole.content, whole.headers["ETag"], whole.headers["Accept-Ranges"]) == (data, tag, "bytes")
        part = {"Range": "bytes=1000000-3999999"}
        for condition in ({}, {"If-Range": tag}):
            answer = await client.get(url, headers=part | condition)
            assert (answer.status_code, answer.content) == (206, data[1_000_000:4_000_000])
        assert (await client.get(url, headers=part | {"If-Range": '"other"'})).status_code == 200
        for held in (tag, f'"other", W/{tag}', "*"):
            answer = await client.get(url, headers={"If-None-Match": held})
            assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
        assert (await client.get(url, headers={"If-None-Match": '"other"'})).status_code == 200
        head = await client.head(url)
        assert (head.headers["Content-Length"], head.headers["Docker-Content-Digest"]) == (
            str(len(data)),
            weights.digest,
        )
        suffix = await client.get(url, headers={"Range": "bytes=-5"})
        assert (suffix.status_code, suffix.content) == (206, data[-5:])


async def test_tags_come_in_pages(plane: ControlPlane, tmp_path: Path) -> None:
    for version in ("1", "2", "3+gpu"):
        async with plane.operator() as operator:
            await operator.publish(adding(tmp_path / version, "paged", version, 1.0))
    found, url = [], "/v2/paged/tags/list?n=2"
    async with http(plane) as client:
        while url:
            page = await client.get(url)
            found.append(page.json()["tags"])
            url = page.links["next"]["url"] if "next" in page.links else ""
        assert found == [["1", "2"], ["3+gpu"]]
        assert (await client.get("/v2/paged/tags/list?n=0")).json()["tags"] == []
        assert (await client.get("/v2/paged/tags/list?n=many")).status_code == 400


async def test_a_token_may_be_a_password(plane: ControlPlane, artifact: Artifact) -> None:
    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()

    async with http(plane, Authorization=basic(plane.token())) as client:
        assert (await client.get("/v2/tuned/manifests/1")).status_code == 200
    for wrong in (basic("no token"), basic(""), "Basic ???", "Digest x", ""):
        async with http(plane, Authorization=wrong) as client:
            answer = await client.get("/v2/")
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="nearmesh"'


# ---- other tools


async def test_oras_pulls_what_was_published(plane: ControlPlane, artifact: Artifact, tmp_path: Path) -> None:
    await asyncio.to_thread(_oras, plane.http, str(plane.data / "authority" / "ca.pem"), plane.token(), tmp_path)
    for file in artifact.manifest.files:
        assert digest_file(tmp_path / file.title) == file.digest
    index = artifact.manifest.chunks
    assert index and ChunkIndex.from_bytes((tmp_path / index.title).read_bytes()).files


def _oras(host: str, ca: str, token: str, into: Path) -> None:
    provider = pytest.importorskip("oras.provider", reason="oras is not installed")
    client = provider.Registry(hostname=host, tls_verify=ca, auth_backend="basic")
    client.auth.set_basic_auth("anybody", token)
    client.pull(target=f"{host}/tuned:1", outdir=str(into))


async def skopeo(*arguments: str) -> str:
    """What it prints."""
    command = [program("skopeo"), *arguments]
    found = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=PROGRAM_LIMIT_S, check=False
    )
    assert found.returncode == 0, found.stderr
    return str(found.stdout)


async def test_skopeo_reads_what_was_published(plane: ControlPlane, artifact: Artifact, tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    (certificates / "ca.crt").write_bytes(plane.authority.ca_pem)
    shown = f"anybody:{plane.token()}"
    where = f"docker://{plane.http}/tuned:1"
    raw = await skopeo("inspect", "--raw", "--creds", shown, "--cert-dir", str(certificates), where)
    assert digest_bytes(raw.encode()) == artifact.digest
    login = ("--src-creds", shown, "--src-cert-dir", str(certificates))
    policy = "--insecure-policy"
    await skopeo(policy, "copy", "--preserve-digests", *login, where, f"dir:{tmp_path / 'copy'}")
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == artifact.manifest_bytes
    for blob in artifact.manifest.blobs:
        assert digest_file(tmp_path / "copy" / blob.digest.removeprefix("sha256:")) == blob.digest
    listed = json.loads(
        await skopeo("list-tags", "--creds", shown, "--cert-dir", str(certificates), f"docker://{plane.http}/tuned")
    )
    assert "1" in listed["Tags"]


async def test_a_version_goes_to_another_registry_and_comes_back(
    plane: ControlPlane, artifact: Artifact, registry: str, tmp_path: Path
) -> None:
    place = f"oci://{registry}/team/tuned"
    pushed = await done(plane, "model", "push", "tuned@1", place)
    assert pushed == {"registry": registry, "name": "team/tuned", "tag": "1", "digest": artifact.digest, "signed": True}
    assert "it was there already" in (await run(plane, "model", "push", "tuned@1", f"{place}:again")).stdout
    weights = next(file for file in artifact.manifest.files if file.title == "fp32.onnx")
    async with httpx.AsyncClient(base_url=f"http://{registry}/v2/team/tuned") as client:
        manifest = await client.get("/manifests/1", headers={"Accept": MANIFEST_TYPE})
        assert (manifest.content, manifest.headers["Docker-Content-Digest"]) == (
            artifact.manifest_bytes,
            artifact.digest,
        )
        # Ranges are what agents read by.
        part = await client.get(f"/blobs/{weights.digest}", headers={"Range": "bytes=1000000-1000999"})
        assert part.status_code == 206
        assert part.content == stored(plane, weights.digest).read_bytes()[1_000_000:1_001_000]
        fallback = f"/manifests/{artifact.digest.replace(':', '-')}"
        (referrer,) = (await client.get(fallback, headers={"Accept": INDEX_TYPE})).json()["manifests"]
        assert referrer["artifactType"] == signature.ARTIFACT_TYPE
    raw = await skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry}/team/tuned:1")
    assert digest_bytes(raw.encode()) == artifact.digest
    pem = tmp_path / "key.pem"
    pem.write_text((await run(plane, "model", "key")).stdout)
    verified = await done(plane, "model", "verify", f"{place}:1", "--key", str(pem))
    assert (verified["digest"], verified["model"]) == (artifact.digest, "tuned")
    async with control_plane(tmp_path / "other") as other:
        stranger = tmp_path / "stranger.pem"
        stranger.write_text(other.authority.model_key_pem)
        assert "not by any" in await refused(other, "model", "pull", f"{place}:1", "--key", str(stranger))
        pulled = await done(other, "model", "pull", f"{place}:1", "--key", str(pem))
        assert pulled["digest"] == artifact.digest and pulled["fetched_bytes"] > 8_000_000
        assert (await done(other, "model", "verify", "tuned"))["digest"] == artifact.digest
        # Of the next version only the new head is fetched.
        second = tuned(tmp_path / "2", "2")
        await sent(plane, second)
        await done(plane, "model", "push", "tuned@2", place)
        pulled = await done(other, "model", "pull", f"{place}:2", "--key", str(pem))
        assert 150_000 < pulled["fetched_bytes"] <= LARGEST_SHARE * second.manifest.size_bytes
        assert (await done(other, "model", "verify", "tuned@2"))["digest"] == second.digest
        # Where the older file is damaged, all of it is.
        third = tuned(tmp_path / "3", "3")
        await sent(plane, third)
        await done(plane, "model", "push", "tuned@3", place)
        for made in (artifact, second):
            weights = next(file for file in made.manifest.files if file.title == "fp32.onnx")
            stored(other, weights.digest).write_bytes(bytes(weights.size_bytes))
        pulled = await done(other, "model", "pull", f"{place}:3", "--key", str(pem))
        assert pulled["fetched_bytes"] >= 8_000_000
        assert (await done(other, "model", "verify", "tuned@3"))["digest"] == third.digest


async def test_skopeo_takes_a_version_from_us_to_a_registry(
    plane: ControlPlane, artifact: Artifact, registry: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_bytes(plane.authority.ca_pem)
    login = ("--src-creds", f"anybody:{plane.token()}", "--src-cert-dir", str(tmp_path), "--dest-tls-verify=false")
    places = (f"docker://{plane.http}/tuned:1", f"docker://{registry}/copied:1")
    await skopeo("--insecure-policy", "copy", "--preserve-digests", *login, *places)
    assert "is not signed" in await refused(plane, "model", "verify", f"oci://{registry}/copied:1")
    async with httpx.AsyncClient() as client:
        found = await client.get(f"http://{registry}/v2/copied/manifests/1", headers={"Accept": MANIFEST_TYPE})
        assert found.content == artifact.manifest_bytes


# ---- nothing that was tampered with passes


async def test_p5_what_the_disk_or_somebody_changed_is_refused_with_the_reason(
    plane: ControlPlane, tmp_path: Path
) -> None:
    made = tuned(tmp_path, "1", "tampered")
    await sent(plane, made)
    weights = next(file for file in made.manifest.files if file.title == "fp32.onnx")
    verified = await run(plane, "model", "verify", "tampered@1")
    assert "tampered@1 is signed, and all 3 files are right" in verified.stdout
    async with http(plane) as client:
        signed = (await client.get(f"/v2/tampered/manifests/{signature.tag(made.digest)}")).content
    ((payload, _),) = signature.signatures(signed)
    cases = {
        weights.digest: f"fp32.onnx is {weights.digest}",
        made.digest: "gave the manifest",
        payload.digest: "gave sha256",
        digest_bytes(signed): "gave the manifest",
    }
    for digest, said in cases.items():
        path = stored(plane, digest)
        before = path.read_bytes()
        path.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
        assert said in await refused(plane, "model", "verify", "tampered@1"), digest
        path.write_bytes(before)
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(signature.public_pem(plane.authority.key))
    assert "not by any" in await refused(plane, "model", "verify", "tampered@1", "--key", str(stranger))
    assert (await done(plane, "model", "verify", "tampered", "--no-files"))["files_read"] is False


async def test_versions_and_places_that_are_none(plane: ControlPlane, artifact: Artifact) -> None:
    assert "no version '9'" in await refused(plane, "model", "push", "tuned@9", "oci://127.0.0.1:1/tuned")
    assert "is not oci://" in await refused(plane, "model", "push", "tuned@1", "ghcr.io/tuned")
    assert "registry 127.0.0.1:1/tuned" in await refused(plane, "model", "pull", "oci://127.0.0.1:1/tuned")
    assert "no model 'nothing'" in await refused(plane, "model", "verify", "nothing")


# ---- what nodes are told


async def test_nodes_are_told_the_key_that_versions_are_signed_by(plane: ControlPlane, tmp_path: Path) -> None:
    credentials = await plane.machine(tmp_path, "listener")
    session = NodeServiceStub(plane.mesh_channel(credentials.channel_credentials())).Session()
    await session.write(node_pb2.NodeReport(hello=node_pb2.NodeHello(public_address="127.0.0.1:1")))
    told = await session.read()
    session.cancel()
    assert list(told.model_keys_pem) == [plane.authority.model_key_pem]


async def test_nodes_pull_from_another_registry_and_from_the_mesh_where_they_cannot(
    plane: ControlPlane, registry: str, tmp_path: Path
) -> None:
    for name in ("elsewhere", "nowhere"):
        async with plane.operator() as operator:
            made = await operator.publish(tuned(tmp_path / name, "1", name))
            await operator.deploy(name, "1")
        if name == "elsewhere":
            await done(plane, "model", "push", "elsewhere@1", f"oci://{registry}/for-nodes", "--nodes")
            # The mesh itself has it no more.
            stored(plane, made.digest).unlink()
        else:
            async with plane.operator() as operator:
                await operator.pull_from("nowhere", "1", "http://127.0.0.1:1/nowhere")
    (shown,) = (await done(plane, "model", "show", "elsewhere"))["versions"]
    assert shown["registry"] == f"http://{registry}/for-nodes"
    async with node(plane, tmp_path / "node", "puller") as agent:
        await agent.serves("elsewhere", "1")
        await agent.serves("nowhere", "1")
        assert "asking the mesh" in agent.log
    async with plane.operator() as operator:
        assert not (await operator.pull_from("nowhere", "1", "")).registry
        with pytest.raises(InvalidInput, match="is not such as"):
            await operator.pull_from("nowhere", "1", "ftp://host/name")
        entry, *_ = await operator.audit()
        assert (entry.action, entry.detail) == ("pull-from", "the mesh's own registry")
