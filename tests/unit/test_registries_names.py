"""Other registries: how they, their models and versions are named, and how one logs in."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from nearmesh.errors import ConfigError, InvalidInput
from nearmesh.registries import credentials
from nearmesh.registries.credentials import Login
from nearmesh.registries.reference import Reference, check_repository, tag_of
from tests.fake_registry import DIGEST
from tests.http_registry import LOGIN


@pytest.mark.parametrize(
    ("text", "expected", "url"),
    [
        ("oci://ghcr.io/team/model:1.0", Reference("ghcr.io", "team/model", "1.0"), "https://ghcr.io"),
        ("oci://localhost:5000/m", Reference("localhost:5000", "m"), "http://localhost:5000"),
        ("oci://127.0.0.1:5000/m:A_b", Reference("127.0.0.1:5000", "m", "A_b"), "http://127.0.0.1:5000"),
        ("oci://[::1]:5000/m", Reference("[::1]:5000", "m"), "http://[::1]:5000"),
        ("oci://10.0.0.7:5000/m", Reference("10.0.0.7:5000", "m"), "https://10.0.0.7:5000"),
        (f"oci://h/a/b/c@{DIGEST}", Reference("h", "a/b/c", "", DIGEST), "https://h"),
        (f"oci://h/a:1@{DIGEST}", Reference("h", "a", "1", DIGEST), "https://h"),
    ],
)
def test_names(text: str, expected: Reference, url: str) -> None:
    assert Reference.parse(text) == expected
    assert expected.url == url
    assert expected.wanted == (expected.digest or expected.tag or "latest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci://",
        "oci://host",
        "oci://host/",
        "oci:///m",
        "docker://host/m",
        "host/m",
        "oci://host/Model",
        "oci://host/a//b",
        "oci://host/../m",
        "oci://host/m:",
        "oci://host/m@",
        "oci://host/m: 1",
        "oci://host/m:.1",
        "oci://user@host/m",
        "oci://ho st/m",
        "oci://host:port/m",
        "oci://host/m@sha256:1",
        "oci://host/" + "a" * 300,
    ],
)
def test_no_names(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(text)


def test_versions_as_tags() -> None:
    assert [tag_of(version) for version in ("1.0", "1.0+gpu")] == ["1.0", "1.0_gpu"]


@pytest.mark.parametrize("url", ["https://h/m", "http://127.0.0.1:5000/a/b"])
def test_places_that_nodes_pull_from(url: str) -> None:
    assert check_repository(url) == url


@pytest.mark.parametrize(
    "url",
    ["", "h/m", "ftp://h/m", "https://h", "https://h/", "https://h/m:1", "https://h/m/", "https://u@h/m", "oci://h/m"],
)
def test_no_places(url: str) -> None:
    with pytest.raises(InvalidInput):
        check_repository(url)


def config(folder: Path, body: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(body))
    return path


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("name", ["h:5000", "https://h:5000", "https://h:5000/v2/"])
def test_a_login_in_dockers_file(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, {"auths": {"other": {"auth": encoded("x:y")}, name: {"auth": encoded("me:se:cret")}}})
    assert credentials.find("h:5000", path) == Login("me", "se:cret")
    assert "secret" not in repr(LOGIN)


def test_no_login(tmp_path: Path) -> None:
    assert credentials.find("h", tmp_path / "config.json") is None
    for body in ({}, {"auths": {}}, {"auths": {"h": {}}}):
        assert credentials.find("h", config(tmp_path, body)) is None


@pytest.mark.parametrize(
    "body", ["text", [], {"auths": {"h": {"auth": "no Base64"}}}, {"auths": []}, {"auths": {"h": "text"}}]
)
def test_a_file_that_is_none(tmp_path: Path, body: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        credentials.find("h", config(tmp_path, body))


def test_dockers_folder_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert credentials.config_file() == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('read host; echo "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"s\\"}"', Login("h", "s")),
        ("echo credentials not found; exit 1", None),
    ],
)
@pytest.mark.parametrize("body", [{"credsStore": "test"}, {"credHelpers": {"h": "test"}}])
def test_a_helper_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: Login | None, body: object
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert credentials.find("h", config(tmp_path, body)) == expected


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="docker-credential-nowhere"):
        credentials.find("h", config(tmp_path, {"credsStore": "nowhere"}))
