"""Weights from URLs, hubs and registries: verified, resumed, kept; and every failure with its remedy."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nearmesh.errors import (
    DigestMismatch,
    MeshError,
    NotFound,
    PackageError,
    PermissionDenied,
    Unauthenticated,
    Unreachable,
)
from nearmesh.package import Source
from nearmesh.packaging.sources import download, fetch
from nearmesh.packaging.sources.download import MOST_TRIES
from tests.file_server import Files, serving

WEIGHTS = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
COMMIT = "c" * 40
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 3000000\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr(download, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(download, "_LONGEST_WAIT_S", 0.001)
    with serving() as found:
        found.contents["/weights.onnx"] = WEIGHTS
        yield found


def from_url(files: Files, path: str = "/weights.onnx", sha256: str = SHA256) -> Source:
    return Source(url=files.url + path, sha256=sha256)


def test_a_file_is_fetched_once_and_kept(files: Files, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(from_url(files), tmp_path, tmp_path, on_progress=lambda *told: seen.append(told))
    assert path == tmp_path / "weights" / SHA256 and path.read_bytes() == WEIGHTS
    assert fetch(from_url(files), tmp_path, tmp_path) == path and len(files.asked) == 1
    assert seen[0] == (f"{files.url}/weights.onnx", 0, len(WEIGHTS))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen) and seen[-1][1] == len(WEIGHTS)


def test_what_is_cut_is_gone_on_with(files: Files, tmp_path: Path) -> None:
    files.cuts["/weights.onnx"] = [1_000_000, 500_000, 0, 700_000]
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert len(files.asked) == 5 and files.asked[1][1] != ""
    # Nothing comes twice but the piece that was on its way.
    assert files.sent["/weights.onnx"] < len(WEIGHTS) + 3 * download._PIECE_BYTES


def test_a_later_call_goes_on_where_the_network_went_away(files: Files, tmp_path: Path) -> None:
    files.cuts["/weights.onnx"] = [2_000_000]
    files.guard = lambda path, headers: (503, {}) if "range" in headers else None
    with pytest.raises(Unreachable, match=r"127.0.0.1 answers 503.*bytes that came are kept, and the next try goes on"):
        fetch(from_url(files), tmp_path, tmp_path)
    assert len(files.asked) == 1 + MOST_TRIES - 1
    files.guard = None
    files.sent.clear()
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert 0 < files.sent["/weights.onnx"] <= 1_000_000 + download._PIECE_BYTES


def test_a_download_that_was_killed_is_gone_on_with(files: Files, tmp_path: Path) -> None:
    files.holds["/weights.onnx"] = 2_000_000
    code = (
        "import sys; from pathlib import Path; from nearmesh.package import Source; "
        "from nearmesh.packaging.sources import fetch; "
        "fetch(Source(url=sys.argv[1], sha256=sys.argv[2]), Path(), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, f"{files.url}/weights.onnx", SHA256, str(tmp_path)]
    draft = tmp_path / "drafts" / SHA256
    with subprocess.Popen(command) as process:
        try:
            deadline_s = time.monotonic() + 30
            while not draft.exists() or draft.stat().st_size < 1_000_000:
                assert process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.01)
        finally:
            process.kill()
    files.go.set()
    kept = draft.stat().st_size
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert files.asked[-1] == ("/weights.onnx", f"bytes={kept}-")


def test_a_server_without_ranges_gives_all_of_it_again(files: Files, tmp_path: Path) -> None:
    files.ignores_ranges = True
    files.cuts["/weights.onnx"] = [1_000_000]
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS


def test_a_server_that_begins_anew_each_time_and_never_ends_is_given_up(files: Files, tmp_path: Path) -> None:
    files.ignores_ranges = True
    files.cuts["/weights.onnx"] = [2_000_000, 1_000_000] * 10
    with pytest.raises(Unreachable, match="check the network and try again"):
        fetch(from_url(files), tmp_path, tmp_path)
    assert len(files.asked) == MOST_TRIES


@pytest.mark.parametrize("left", [b"wrong" * 1000, WEIGHTS[:-1] + b"\0", WEIGHTS + b"more"])
def test_what_was_left_and_is_wrong_is_thrown_away(files: Files, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / SHA256).write_bytes(left)
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS


def test_a_whole_draft_is_only_verified(files: Files, tmp_path: Path) -> None:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / SHA256).write_bytes(WEIGHTS)
    assert fetch(from_url(files), tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert files.sent["/weights.onnx"] == 0


def test_other_bytes_are_refused(files: Files, tmp_path: Path) -> None:
    files.contents["/weights.onnx"] = b"other"
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DigestMismatch, match=f"has sha256 {other}, model.toml expects {SHA256}"):
        fetch(from_url(files), tmp_path, tmp_path)
    assert not (tmp_path / "weights" / SHA256).exists() and len(files.asked) == 1


def test_callers_at_the_same_time_fetch_it_once(files: Files, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(from_url(files), tmp_path, tmp_path), range(8)))
    assert {path.read_bytes() for path in paths} == {WEIGHTS} and len(files.asked) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, r"gave a Git LFS pointer instead of the file \(oid sha256:1{64}, size 3000000\): run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>log in</html>", "gave a web page instead of the file: the address may ask for"),
    ],
)
def test_what_is_easily_mistaken_for_weights(files: Files, tmp_path: Path, content: bytes, said: str) -> None:
    files.contents["/weights.onnx"] = content
    with pytest.raises(PackageError, match=said):
        fetch(from_url(files), tmp_path, tmp_path)


def test_a_pointer_beside_model_toml(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(POINTER)
    with pytest.raises(PackageError, match=r"a\.onnx is a Git LFS pointer instead of the file"):
        fetch(Source(path="a.onnx"), tmp_path, tmp_path)


def test_an_address_that_has_nothing(files: Files, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"/none: 127\.0\.0\.1 answers 404 Not Found; check the address"):
        fetch(from_url(files, "/none"), tmp_path, tmp_path)
    assert len(files.asked) == 1


def test_no_network(files: Files, tmp_path: Path) -> None:
    with serving() as gone:
        source = from_url(gone)
    with pytest.raises(Unreachable, match="check the network and try again"):
        fetch(source, tmp_path, tmp_path)


def test_redirects_are_followed_but_not_to_plain_http(files: Files, tmp_path: Path) -> None:
    files.redirects["/moved"] = "/weights.onnx"
    files.redirects["/away"] = "http://example.org/weights.onnx"
    assert fetch(from_url(files, "/moved"), tmp_path, tmp_path).read_bytes() == WEIGHTS
    with pytest.raises(PackageError, match=r"http://example\.org/weights\.onnx: a server leads there, and it is not"):
        fetch(from_url(files, "/away", "1" * 64), tmp_path, tmp_path)


# ---- hubs


HUB = Source(hf="owner/digits", revision=COMMIT, file="onnx/model q8.onnx", sha256=SHA256)
HUB_PATH = f"/owner/digits/resolve/{COMMIT}/onnx/model%20q8.onnx"


def test_a_hubs_file_by_its_commit(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answers with a redirect to its store, which is another host: the token stays with the hub."""
    heard: dict[str, str | None] = {}
    with serving() as store:
        store.contents["/blob"] = WEIGHTS
        store.guard = lambda path, headers: heard.setdefault("store", headers.get("authorization")) and None
        files.guard = lambda path, headers: heard.setdefault("hub", headers.get("authorization")) and None
        files.redirects[HUB_PATH] = f"{store.url}/blob"
        monkeypatch.setenv("HF_ENDPOINT", f"{files.url}/")
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert fetch(HUB, tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert heard == {"hub": "Bearer secret", "store": None}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "check the model's name, the commit and the file; a model that is private or asks for consent needs a"),
        (403, "needs a token in HF_TOKEN, whose owner has access"),
        (404, "check the model's name, the commit and the file$"),
    ],
)
def test_what_a_hub_refuses(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", files.url)
    files.statuses[HUB_PATH] = [status]
    with pytest.raises(PackageError, match=f"onnx/model q8.onnx of owner/digits: .* answers {status} .*{said}"):
        fetch(HUB, tmp_path, tmp_path)


def test_the_usual_hub_is_known_to_its_library(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("huggingface_hub")
    library.constants = SimpleNamespace(ENDPOINT=files.url)  # type: ignore[attr-defined]
    library.get_token = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    files.contents[HUB_PATH] = WEIGHTS
    assert fetch(HUB, tmp_path, tmp_path).read_bytes() == WEIGHTS


def test_no_hub_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PackageError, match="pip install huggingface_hub, or set HF_ENDPOINT"):
        fetch(HUB, tmp_path, tmp_path)


# ---- registries


def manifest(**more: Any) -> bytes:
    layers = [
        {"mediaType": "x", "digest": "sha256:" + "3" * 64, "size": 1, "annotations": None},
        {
            "mediaType": "x",
            "digest": f"sha256:{SHA256}",
            "size": len(WEIGHTS),
            "annotations": {"org.opencontainers.image.title": "fp32.onnx"},
        },
        {
            "mediaType": "x",
            "digest": "sha256:" + "2" * 64,
            "size": 1,
            "annotations": {"org.cncf.model.filepath": "labels.txt"},
        },
    ]
    return json.dumps({"schemaVersion": 2, "layers": layers, **more}).encode()


def publish(files: Files, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    files.contents[f"/v2/models/digits/manifests/{digest}"] = data
    files.contents[f"/v2/models/digits/blobs/sha256:{SHA256}"] = WEIGHTS
    return f"{files.host}/models/digits@{digest}"


def test_a_layer_of_an_artifact(files: Files, tmp_path: Path) -> None:
    source = Source(oci=publish(files, manifest()), file="fp32.onnx", sha256=SHA256)
    files.cuts[f"/v2/models/digits/blobs/sha256:{SHA256}"] = [1_000_000]
    assert fetch(source, tmp_path, tmp_path).read_bytes() == WEIGHTS


def test_a_registry_that_gives_anybody_a_token(files: Files, tmp_path: Path) -> None:
    """As public registries do: 401 with where the token is to be had, and then all is open."""
    challenge = f'Bearer realm="{files.url}/token",service="registry",scope="repository:models/digits:pull"'

    def guard(path: str, headers: Any) -> tuple[int, dict[str, str]] | None:
        if path.startswith("/token") or headers.get("authorization") == "Bearer open":
            return None
        return 401, {"www-authenticate": challenge}

    source = Source(oci=publish(files, manifest()), file="fp32.onnx", sha256=SHA256)
    files.contents["/token"] = b'{"token": "open"}'
    files.guard = guard
    assert fetch(source, tmp_path, tmp_path).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("data", "file", "said"),
    [
        (manifest(), "int8.onnx", r"has no layer titled 'int8\.onnx'; it has fp32\.onnx, labels\.txt"),
        (manifest(layers=None), "fp32.onnx", "is no manifest with layers; name the digest of one artifact"),
        (b"no JSON", "fp32.onnx", "its manifest is not JSON"),
        (b"[]", "fp32.onnx", "is no manifest with layers"),
        (manifest(layers=[7, {"annotations": 7}]), "fp32.onnx", "it has none"),
    ],
)
def test_artifacts_without_that_file(files: Files, tmp_path: Path, data: bytes, file: str, said: str) -> None:
    with pytest.raises(PackageError, match=said):
        fetch(Source(oci=publish(files, data), file=file, sha256=SHA256), tmp_path, tmp_path)


def test_a_layer_or_a_manifest_of_other_bytes(files: Files, tmp_path: Path) -> None:
    reference = publish(files, manifest())
    with pytest.raises(DigestMismatch, match=f"fp32.onnx of .* has sha256 {SHA256}, model.toml expects {'4' * 64}"):
        fetch(Source(oci=reference, file="fp32.onnx", sha256="4" * 64), tmp_path, tmp_path)
    files.contents["/v2/models/digits/manifests/" + reference.partition("@")[2]] = manifest(annotations={})
    with pytest.raises(DigestMismatch, match="gave the manifest sha256:"):
        fetch(Source(oci=reference, file="fp32.onnx", sha256=SHA256), tmp_path, tmp_path)


def test_a_registry_that_asks_for_a_login(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login is shown to the registry, and not where a redirect leads."""
    source = Source(oci=publish(files, manifest()), file="fp32.onnx", sha256=SHA256)
    basic = base64.b64encode(b"me:secret").decode()

    def guard(path: str, headers: Any) -> tuple[int, dict[str, str]] | None:
        right = headers.get("authorization") == f"Basic {basic}"
        return None if right else (401, {"www-authenticate": 'Basic realm="here"'})

    files.guard = guard
    with pytest.raises(Unauthenticated, match="docker login"):
        fetch(source, tmp_path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"auths": {files.host: {"auth": basic}}}))
    with serving() as store:
        heard: list[str | None] = []
        store.contents["/blob"] = WEIGHTS
        store.guard = lambda path, headers: heard.append(headers.get("authorization"))
        files.redirects[f"/v2/models/digits/blobs/sha256:{SHA256}"] = f"{store.url}/blob"
        assert fetch(source, tmp_path, tmp_path).read_bytes() == WEIGHTS
    assert heard == [None]


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionDenied), (404, NotFound), (500, Unreachable)])
def test_what_a_registry_refuses(files: Files, tmp_path: Path, status: int, kind: type[MeshError]) -> None:
    reference = publish(files, manifest())
    files.guard = lambda path, headers: (status, {})
    with pytest.raises(kind, match=f"answered {status} for manifests"):
        fetch(Source(oci=reference, file="fp32.onnx", sha256=SHA256), tmp_path, tmp_path)


def test_a_registry_that_is_away(tmp_path: Path) -> None:
    with serving() as gone:
        reference = publish(gone, manifest())
    with pytest.raises(Unreachable, match="registry 127"):
        fetch(Source(oci=reference, file="fp32.onnx", sha256=SHA256), tmp_path, tmp_path)
