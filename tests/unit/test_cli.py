"""The command line as a program: what it loads, which mesh it means, and how failures end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from nearmesh.cli import token as token_commands
from nearmesh.cli.main import COMMANDS, Commands, main
from nearmesh.errors import NotFound, PermissionDenied, Unreachable
from nearmesh.tokens import ROLES
from tests.fake_admin import Bench, local_mesh


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Bench(local_mesh(tmp_path))


# ---- the program


def test_every_command_exists_and_has_help() -> None:
    assert isinstance(main, Commands)
    context = click.Context(main)
    for name in COMMANDS:
        assert main.get_command(context, name) is not None, name
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0, name


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"], prog_name="nearmesh").stdout.startswith("nearmesh 0.")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nearmesh.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'tritonclient', 'rich', 'onnx', 'cryptography', 'nearmesh.v1'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_roles_are_those_of_tokens() -> None:
    assert token_commands.ROLES == ROLES


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("node", "nope"),
        ("node", "list", "--nope"),
        ("node", "token", "n"),
        ("node", "token", "n", "--site", "s", "--region", "r", "--kind", "king"),
        ("node", "price", "node-a", "much"),
        ("node", "price", "node-a", "--", "-1"),
        ("node", "price", "node-a"),
        ("node", "price", "node-a", "1", "--unset"),
        ("node", "price", "node-a", "--unset", "--for", "1h"),
        ("node", "price", "node-a", "1", "--for", "tomorrow"),
        ("node", "price", "node-a", "1", "--for", "0h"),
        ("price", "transfer", "a", "b"),
        ("price", "transfer", "a", "b", "1", "--unset"),
        ("price", "transfer", "a", "b", "--", "-1"),
        ("route", "set", "digits", "--regions", "a,,b"),
        ("route", "set", "digits", "--regions", "a", "--any-region"),
        ("route", "residency", "a"),
        ("route", "residency", "a", "b", "--clear"),
        ("route", "residency", "--clear"),
        ("node", "remove", "node-a"),
        ("token", "issue", "--subject", "me", "--role", "king"),
        ("model", "deploy", "digits"),
        ("model", "deploy", "@1"),
        ("model", "publish", "/nowhere/at/all"),
        ("model", "publish", ".", "--site", "site-a"),
        ("route", "explain", "--model", "digits"),
        ("route", "set", "digits"),
        ("route", "set", "digits", "--objective", "fastest"),
        ("infer", "digits"),
        ("infer", "digits", "--input", "x=1", "--resize", "12"),
        ("infer", "digits", "--input", "x=1", "--mean", "a"),
        ("infer", "digits", "--input", "x=1", "--output", "y=y.png"),
        ("audit", "--limit", "0"),
        ("client", "bootstrap", "--region", "us-east1"),
    ],
)
def test_a_usage_error_is_2_and_says_nothing_on_stdout(run: Bench, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert "Error:" in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionDenied("client/app may not"), "error: client/app may not"),
        (Unreachable("the control plane\n is away"), "error: the control plane is away"),
        (ExceptionGroup("together", [NotFound("no a"), ExceptionGroup("", [NotFound("no b")])]), "error: no a; no b"),
        (
            FileNotFoundError(2, "No such file or directory", "x.npy"),
            "error: [Errno 2] No such file or directory: 'x.npy'",
        ),
    ],
)
def test_a_failure_is_1_with_one_line(run: Bench, error: Exception, line: str) -> None:
    run.pretend(error=error)
    done = run("node", "list")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", line + "\n")


def test_ctrl_c_is_130_and_quiet(run: Bench) -> None:
    run.pretend(error=KeyboardInterrupt())
    done = run("node", "list")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


def test_a_bug_is_not_dressed_up_as_a_failure(run: Bench) -> None:
    run.pretend(error=ExceptionGroup("both", [NotFound("no a"), ZeroDivisionError()]))
    done = run("node", "list")
    assert isinstance(done.exception, ExceptionGroup)


# ---- which mesh


def test_without_a_mesh_the_ways_to_name_one_are_said(run: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / ".nearmesh/dev/mesh.json").unlink()
    done = run("node", "list", bare=True)
    assert done.exit_code == 2
    assert "nearmesh dev up" in done.stderr


def test_the_nearest_local_mesh_upwards_is_taken(run: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert run("node", "list", bare=True).exit_code == 0
    assert run.admin.place.control_plane == "127.0.0.1:7400"
    assert run.admin.place.token == "eyJ.operator.x"


def test_the_client_token_does_where_there_is_no_operators(run: Bench) -> None:
    (run.mesh / "operator.jwt").rename(run.mesh / "client.jwt")
    (run.mesh / "client.jwt").write_text("eyJ.client.x")
    run("node", "list")
    assert run.admin.place.token == "eyJ.client.x"


def test_a_folder_that_is_no_mesh(run: Bench, tmp_path: Path) -> None:
    done = run("--mesh", str(tmp_path), "node", "list", bare=True)
    assert done.exit_code == 2
    assert "mesh.json" in done.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"control_plane": 7}'])
def test_a_mesh_file_that_makes_no_sense(run: Bench, text: str) -> None:
    (run.mesh / "mesh.json").write_text(text)
    done = run("node", "list")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {run.mesh / 'mesh.json'}")


def test_another_mesh_from_the_environment(run: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "token").write_text("eyJ.mine.x\n")
    (tmp_path / "ca").write_text("pem")
    env = {
        "NEARMESH_CONTROL_PLANE": "cp:7400",
        "NEARMESH_CA": str(tmp_path / "ca"),
        "NEARMESH_TOKEN": str(tmp_path / "token"),
    }
    assert run("node", "list", env=env, bare=True).exit_code == 0
    assert (run.admin.place.control_plane, run.admin.place.token) == ("cp:7400", "eyJ.mine.x")
    run("node", "list", env=env)
    assert run.admin.place.control_plane == "127.0.0.1:7400", "a mesh named by hand wins over the environment"


def test_one_option_may_replace_a_part_of_the_local_mesh(run: Bench) -> None:
    run("--token", "eyJ.other.x", "node", "list")
    assert (run.admin.place.control_plane, run.admin.place.token) == ("127.0.0.1:7400", "eyJ.other.x")


def test_what_is_missing_is_named(run: Bench, monkeypatch: Any) -> None:
    monkeypatch.chdir("/")
    done = run("--control-plane", "cp:7400", "node", "list", bare=True)
    assert done.exit_code == 2
    assert "--ca and --token missing" in done.stderr


def test_a_token_file_that_is_not_there(run: Bench) -> None:
    done = run("--token", "/nowhere/token", "node", "list")
    assert (done.exit_code, done.stderr) == (
        1,
        "error: /nowhere/token: the token cannot be read: No such file or directory\n",
    )
