"""When a node runs a SuperNode, what it says of itself, and what the SuperNode gets to see; no program is started."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.config import get_project_dir
from flwr.supernode.runtime import run_clientapp
from nearmesh_agent.training import app_process, client_app, supernode
from nearmesh_agent.training.config import DataConfig, TrainingConfig
from nearmesh_agent.training.key import private_openssh, public_openssh
from nearmesh_agent.training.part import NO_FLOWER, Training
from nearmesh_agent.training.site import KEY, Site
from nearmesh_agent.training.supernode import SuperNode, environment

from nearmesh.errors import ConfigError
from nearmesh.tls import Credentials, key_to_pem, new_key
from nearmesh.v1 import node_pb2 as pb

SUPERLINK = "control.example:7480"


class Kept:
    """In the place of a SuperNode: counts, and says where it was pointed."""

    def __init__(self) -> None:
        self.at: list[str] = []
        self.ended = 0
        self.running = False
        self.detail = ""

    async def keep(self, superlink: str) -> None:
        self.at.append(superlink)
        self.running = True
        try:
            await asyncio.Event().wait()
        finally:
            self.running = False
            self.ended += 1


class Free:
    """A budget that leaves everything as it is."""

    yielded_s, paused, threads = 1.5, "serving is busy", 2

    def command(self, command: Sequence[str], yielded_file: Path) -> list[str]:
        return ["budget", *command]

    async def run(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()


class Node:
    """One node's part, its credentials in hand."""

    def __init__(self, tmp_path: Path, config: TrainingConfig) -> None:
        self.credentials = Credentials(key_to_pem(new_key()), b"certificate", b"authority")
        self.supernode = Kept()
        self.part = Training(
            config,
            tmp_path,
            lambda: self.credentials,
            Free(),
            supernode=self.supernode,  # type: ignore[arg-type]
        )

    def want(self, superlink: str = SUPERLINK) -> None:
        self.part.want(pb.WantedState(training=pb.WantedTraining(superlink=superlink)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.part.run())
        yield
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


@pytest_asyncio.fixture(autouse=True)
async def one_thread() -> AsyncIterator[None]:
    """So that what was given to a thread before is done before what is given to it later."""
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        yield


async def settled() -> None:
    """What the loop's tasks and threads have to do has been done."""
    for _ in range(20):
        await asyncio.to_thread(lambda: None)


def config(tmp_path: Path, **more: Any) -> TrainingConfig:
    (tmp_path / "digits.npz").touch()
    data = {"digits": DataConfig(path=tmp_path / "digits.npz"), "absent": DataConfig(path=tmp_path / "secret-name")}
    return TrainingConfig(**{"allowed": True, "data": data, **more})


async def test_a_supernode_runs_while_it_is_asked_for(tmp_path: Path) -> None:
    node = Node(tmp_path, config(tmp_path))
    async with node.running():
        await settled()
        assert node.supernode.at == []
        node.want()
        node.want()
        await settled()
        assert (node.supernode.at, node.supernode.ended) == ([SUPERLINK], 0)
        node.want("other.example:7480")
        await settled()
        assert (node.supernode.at[1:], node.supernode.ended) == (["other.example:7480"], 1)
        node.part.want(pb.WantedState())
        await settled()
        assert (len(node.supernode.at), node.supernode.ended) == (2, 2)
        node.want()
        await settled()
        assert (len(node.supernode.at), node.supernode.ended) == (3, 2)
        node.part.leave()
        await settled()
        assert node.supernode.ended == 3
        node.want()
        await settled()
        assert node.supernode.ended == len(node.supernode.at) == 3


async def test_whatever_is_wrong_with_training_serving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nearmesh_agent.training.part.LOOK_EVERY_S", 0.0)
    node = Node(tmp_path, config(tmp_path))
    kept, broken = node.supernode.keep, iter([RuntimeError("a bug"), RuntimeError("again")])

    async def breaks(superlink: str) -> None:
        if error := next(broken, None):
            raise error
        await kept(superlink)

    node.supernode.keep = breaks  # type: ignore[method-assign]
    async with node.running():
        node.want()
        await settled()
        await settled()
        assert node.supernode.at == [SUPERLINK]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug", "again"]


async def test_the_operators_own_address_of_the_superlink_counts(tmp_path: Path) -> None:
    node = Node(tmp_path, config(tmp_path, superlink="proxy.example:1"))
    async with node.running():
        node.want()
        await settled()
        assert node.supernode.at == ["proxy.example:1"]


async def test_another_authority_of_the_mesh_is_trusted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nearmesh_agent.training.part.LOOK_EVERY_S", 0.001)
    node = Node(tmp_path, config(tmp_path))
    async with node.running():
        node.want()
        await settled()
        node.credentials = Credentials(node.credentials.key_pem, b"renewed", b"authority")
        await settled()
        assert node.supernode.ended == 0
        node.credentials = Credentials(node.credentials.key_pem, b"renewed", b"another authority")
        async with asyncio.timeout(10.0):
            while len(node.supernode.at) < 2:  # noqa: ASYNC110 - it looks now and then
                await asyncio.sleep(0.001)
        assert node.supernode.ended == 1


async def test_without_the_operators_word_there_is_no_training(tmp_path: Path) -> None:
    node = Node(tmp_path, config(tmp_path, allowed=False))
    node.want()
    await node.part.run()
    assert node.part.status() is None
    assert node.supernode.at == []


async def test_a_node_says_what_it_has_and_not_where(tmp_path: Path) -> None:
    node = Node(tmp_path, config(tmp_path))
    async with node.running():
        await settled()
        status = node.part.status()
    assert status is not None
    assert list(status.models) == ["digits"]
    assert (status.paused, status.yielded_s, status.cpu_share, status.running) == ("serving is busy", 1.5, 0.5, False)
    assert status.detail == "data of absent are not where its node.toml says; its log has the path"
    assert isinstance(load_ssh_public_key(status.public_key.encode()), ec.EllipticCurvePublicKey)


async def test_a_path_that_cannot_even_be_looked_at_ends_no_agent(tmp_path: Path) -> None:
    # Longer than a name may be: as of a folder that is closed to this user, asking for it is an error.
    data = {"odd": DataConfig(path=tmp_path / ("x" * 300))}
    node = Node(tmp_path, config(tmp_path, data=data))
    async with node.running():
        await settled()
        status = node.part.status()
    assert status is not None
    assert list(status.models) == []


async def test_without_flower_a_node_has_no_models_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    node = Node(tmp_path, config(tmp_path))
    async with node.running():
        node.want()
        await settled()
        status = node.part.status()
    assert status is not None
    assert (list(status.models), status.detail, node.supernode.at) == ([], NO_FLOWER, [])


def test_the_key_is_the_certificates(tmp_path: Path) -> None:
    key = new_key()
    private = load_ssh_private_key(private_openssh(key_to_pem(key)), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.private_numbers() == key.private_numbers()
    public = load_ssh_public_key(public_openssh(key_to_pem(key)).encode())
    assert public == key.public_key()
    assert "\n" not in public_openssh(key_to_pem(key))


def test_what_a_supernode_is_started_with(tmp_path: Path) -> None:
    credentials = Credentials(key_to_pem(new_key()), b"certificate", b"authority")
    allowed = config(tmp_path, node_config="partition-id=0", device="cuda:1")
    one = SuperNode(allowed, tmp_path / "training", lambda: credentials, Free(), program=["supernode"])
    (tmp_path / "training" / supernode.APPS / "of.an.old.run").mkdir(parents=True)
    command, _ = one._prepare(SUPERLINK)
    assert command[:4] == ["budget", "supernode", "--superlink", SUPERLINK]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert Path(options["--root-certificates"]).read_bytes() == b"authority"
    private = Path(options["--auth-supernode-private-key"])
    assert public_openssh(credentials.key_pem) == _public_of(private.read_bytes())
    pair, other = options["--node-config"].split(" ")
    path = Path(pair.removeprefix(f"{KEY}=").strip("'"))
    assert other == "partition-id=0"
    site = Site.of({KEY: path})
    assert site == Site(data=allowed.data, threads=2, device="cuda:1", yielded=tmp_path / "training" / "yielded")
    assert {stat.S_IMODE(file.stat().st_mode) for file in (private, path)} == {0o600}
    assert stat.S_IMODE((tmp_path / "training").stat().st_mode) == 0o700
    assert not (tmp_path / "training" / supernode.APPS).exists()


def _public_of(private: bytes) -> str:
    public = load_ssh_private_key(private, None).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_the_data_are_no_argument_of_a_command_line(tmp_path: Path) -> None:
    one = SuperNode(config(tmp_path), tmp_path / "t", lambda: Credentials(key_to_pem(new_key()), b"", b""), Free())
    assert "secret-name" not in " ".join(one._prepare(SUPERLINK)[0])
    assert "secret-name" in json.dumps(json.loads((tmp_path / "t" / "site.json").read_text()))


def test_no_secret_of_the_agents_environment_is_passed_on(tmp_path: Path) -> None:
    secrets = {"NEARMESH_JOIN_TOKEN": "s", "HTTPS_PROXY": "http://u:p@h", "AWS_SECRET_ACCESS_KEY": "s"}
    plain = {"TZ": "UTC", "CUDA_VISIBLE_DEVICES": "1"}
    found = environment(tmp_path, own_apps=False, own={**secrets, **plain})
    assert found.keys() & {*secrets, *plain} == plain.keys()
    assert (found["FLWR_TELEMETRY_ENABLED"], found["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert found["FLWR_HOME"].startswith(str(tmp_path))


@pytest.mark.parametrize("own_apps", [False, True])
def test_of_flowers_programs_only_those_are_found_that_the_operator_allows(tmp_path: Path, own_apps: bool) -> None:
    for before in (not own_apps, own_apps):
        path = environment(tmp_path, own_apps=before)["PATH"]
    client_app = Path(shutil.which("flwr-clientapp", path=path) or "").read_text()
    assert "nearmesh_agent.training.app_process" in client_app
    assert ("--own-apps" in client_app) is own_apps
    for name in ("flwr-agentapp", "flwr-connector", "flwr-model"):
        done = subprocess.run([shutil.which(name, path=path) or ""], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, f"{name} does not run on this node\n")


@pytest.mark.parametrize("said", [app_process.MESH_APP, "own.client:app"])
def test_p9_no_other_app_runs_unless_the_operator_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = get_project_dir("team/app", "1.0.0", "0123456789")
    folder.mkdir(parents=True)
    for module in ("own", "numpy"):
        (folder / f"{module}.py").write_text("raise SystemExit('this ran')")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "team"\n'
        f'[tool.flwr.app.components]\nserverapp = "s:app"\nclientapp = "{said}"\n'
    )
    if said == app_process.MESH_APP:
        assert app_process.load("team/app", "1.0.0", "0123456789") is client_app.app
        assert sys.path[-1] == str(folder)
    else:
        with pytest.raises(LoadClientAppError, match=r"runs no app but the mesh's, and not 'own.client:app'"):
            app_process.load("team/app", "1.0.0", "0123456789")


def test_flowers_own_program_is_the_one_that_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it loaded otherwise in some version of Flower, apps would slip through."""
    used = []
    monkeypatch.setattr(run_clientapp, "get_load_client_app_fn", run_clientapp.get_load_client_app_fn)
    monkeypatch.setattr(app_process, "flwr_clientapp", lambda: used.append(run_clientapp.get_load_client_app_fn))
    plain = run_clientapp.get_load_client_app_fn
    app_process.main(own_apps=True)
    assert used.pop() is plain
    app_process.main(own_apps=False)
    assert used[0](default_app_ref="", app_path=None, multi_app=True) is app_process.load
    assert "load_client_app_fn = get_load_client_app_fn(" in inspect.getsource(run_clientapp.run_clientapp)


def test_a_path_that_flower_cannot_take_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "operator's"
    with pytest.raises(ConfigError, match="no path with '"):
        SuperNode(config(tmp_path), folder, lambda: Credentials(b"", b"", b""), Free())
    SuperNode(config(tmp_path, allowed=False), folder, lambda: Credentials(b"", b"", b""), Free())


def test_the_log_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernode, "MAX_LOG_BYTES", 10)
    one = SuperNode(config(tmp_path), tmp_path, lambda: Credentials(b"", b"", b""), Free())
    log = tmp_path / supernode.LOG
    with log.open("ab") as writer:
        writer.write(b"more than ten bytes")
        writer.flush()
        one._rotate()
        writer.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / f"{supernode.LOG}.1").read_bytes() == b"more than ten bytes"
