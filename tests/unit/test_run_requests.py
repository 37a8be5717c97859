"""What may be asked of runs: every field that cannot be is refused with a word that helps, before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nearmesh_controlplane.listeners import POLICY
from nearmesh_controlplane.runs.apps import check_fab, write_app
from nearmesh_controlplane.runs.messages import asked_of, check_settings, promotion_of, run_message
from nearmesh_controlplane.runs.run import Check, Run, When

from nearmesh.errors import InvalidInput, PermissionDenied
from nearmesh.rpc import Gatekeeper, Identity
from nearmesh.v1 import run_pb2 as pb
from tests.pretended_runs import PROJECT, fab


def asked(**more: Any) -> pb.StartRunRequest:
    return pb.StartRunRequest(**{"model": "m", "rounds": 3, **more})


def test_what_is_left_open_has_defaults() -> None:
    found = asked_of(asked())
    assert (found.min_sites, found.strategy, found.round_timeout_s) == (2, "fedavg", 120.0)
    assert (found.settings, found.sites, found.privacy.noise_multiplier, found.when) == ({}, (), 0.0, When())
    full = asked_of(
        asked(
            strategy="krum",
            min_sites=3,
            strategy_options={"num-malicious-nodes": 1},
            settings={"epochs": "2", "name": '"x"', "shuffle": "true", "rate": "0.5"},
            sites=["b", "a", "b"],
            schedule=pb.Schedule(window=" 22:00-06:00 "),
        )
    )
    assert (full.strategy_options, full.sites, full.when) == (
        {"num-malicious-nodes": 1.0},
        ("a", "b"),
        When(window="22:00-06:00"),
    )
    assert asked_of(asked(strategy="fedprox")).strategy_options == {"proximal-mu": 0.1}


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "no rounds": ({"rounds": 0}, "rounds is 0; expected 1 to 10000"),
    "many rounds": ({"rounds": 10_001}, "rounds is 10001"),
    "many sites": ({"min_sites": 2000}, "min_sites is 2000; expected 1 to 1000"),
    "no strategy": ({"strategy": "fedaverage"}, r"no strategy is called 'fedaverage' \(did you mean fedavg\?\); there"),
    "all strategies": ({"strategy": "x"}, "fedavg, fedprox, fedadam"),
    "no option": ({"strategy_options": {"beta": 1}}, "no option of fedavg is called 'beta'"),
    "option too large": ({"strategy": "trimmed-mean", "min_sites": 3, "strategy_options": {"beta": 2}}, "beta is 2"),
    "too few for krum": ({"strategy": "krum"}, "krum.* needs answers of 3 sites and the run takes 2"),
    "time": ({"round_timeout_s": -1.0}, "round_timeout_s is -1"),
    "no number": ({"round_timeout_s": float("nan")}, "round_timeout_s is nan"),
    "norm": ({"largest_norm": float("inf")}, "largest_norm is inf"),
    "no TOML": ({"settings": {"a": "two words"}}, "setting a is two words, which is no value of TOML"),
    "two keys": ({"settings": {"a": "1\nb = 2"}}, "which is no value of TOML"),
    "a list": ({"settings": {"a": "[1]"}}, r"setting a is \[1\]; expected a text, a number, true or false"),
    "infinite": ({"settings": {"a": "inf"}}, "setting a is inf; expected a finite number"),
    "large": ({"settings": {"a": str(2**63)}}, "setting a is 9223372036854775808; expected a whole number of 64 bits"),
    "long": ({"settings": {"a": "1" * 3000}}, "has 3000 characters"),
    "key": ({"idempotency_key": "k" * 201}, "the idempotency key has 201 characters"),
    "noise": ({"privacy": pb.Privacy(clipping_norm=1.0)}, "noise_multiplier is 0"),
    "clipping": ({"privacy": pb.Privacy(noise_multiplier=1.0)}, "clipping_norm is 0"),
    "delta": ({"privacy": pb.Privacy(noise_multiplier=1, clipping_norm=1, delta=0.9)}, "delta is 0.9"),
    "noise for a median": (
        {
            "strategy": "fedmedian",
            "min_sites": 3,
            "privacy": pb.Privacy(noise_multiplier=1, clipping_norm=1),
        },
        "the noise of differential privacy is for means, and fedmedian makes none: fedavg",
    ),
    "window": ({"schedule": pb.Schedule(window="10 pm")}, "is not HH:MM-HH:MM"),
    "idle": ({"schedule": pb.Schedule(idle_below=1.5)}, "idle below 1.5 means nothing"),
    "steps": ({"promote": pb.PromoteOptions(steps=[0.5, 0.1])}, "none is below the one before"),
    "step time": ({"promote": pb.PromoteOptions(step_s=-1)}, "step_s is -1"),
    "loss": ({"promote": pb.PromoteOptions(largest_site_loss=-0.1)}, "largest_site_loss is -0.1"),
    "gain": ({"promote": pb.PromoteOptions(smallest_mean_gain=float("nan"))}, "smallest_mean_gain is nan"),
    "strategy of an app": ({"app": b"x", "strategy": "krum"}, "an app of your own brings a strategy itself"),
    "norm of an app": ({"app": b"x", "largest_norm": 1.0}, "an app of your own brings a largest norm itself"),
    "noise of an app": ({"app": b"x", "privacy": pb.Privacy(noise_multiplier=1)}, "brings differential privacy itself"),
    "promotion of an app": ({"app": b"x", "auto_promote": True}, "`nearmesh model publish` publishes it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_asked(what: str) -> None:
    more, words = REFUSED[what]
    with pytest.raises(InvalidInput, match=words):
        asked_of(asked(**more))


def test_a_setting_that_nobody_reads_is_refused() -> None:
    check_settings({"epochs": "3"}, {"epochs": 2, "rate": 0.1}, "m@1")
    with pytest.raises(InvalidInput, match="m@1 has no setting 'epoch'; it has epochs, rate"):
        check_settings({"epoch": "3"}, {"epochs": 2, "rate": 0.1}, "m@1")


def test_the_same_words_have_the_same_fingerprint() -> None:
    one = asked_of(asked(settings={"a": "1", "b": "2"}, idempotency_key="k")).fingerprint
    assert asked_of(asked(settings={"b": "2", "a": "1"}, idempotency_key="k")).fingerprint == one
    assert asked_of(asked(settings={"b": "2", "a": "2"}, idempotency_key="k")).fingerprint != one


def test_a_run_as_the_contract_has_it() -> None:
    request = asked(
        version="1",
        strategy="fedavg",
        min_sites=2,
        round_timeout_s=60,
        settings={"epochs": "2"},
        idempotency_key="k",
        auto_promote=True,
        sites=["a"],
        largest_norm=2.0,
        privacy=pb.Privacy(noise_multiplier=1, clipping_norm=2, delta=1e-6),
        schedule=pb.Schedule(window="22:00-06:00", idle_below=0.5),
        promote=pb.PromoteOptions(steps=[0.5], step_s=3, step_requests=9, largest_site_loss=0.0),
    )
    found = asked_of(request)
    run = Run(
        id="r1",
        model="m",
        parent_version="1",
        parent_digest="d",
        asked=found,
        actor="data/ann",
        created_at_s=1.0,
        checks=(Check(name="norm", passed=False, detail="far"),),
        promotion=promotion_of(request.promote),
    )
    message = run_message(run, sites={})
    # What was asked for comes back, without the app.
    assert message.asked == request
    assert (message.gate.passed, message.gate.checks[0].detail, message.delta) == (False, "far", 1e-6)
    assert not run_message(run, sites={}).HasField("progress")


# Apps


def test_the_mesh_s_app_is_what_flower_takes(tmp_path: Path) -> None:
    settings = {"name": 'a "b" \\ \x7f\n', "epochs": 2, "rate": 1e-05, "shuffle": True}
    write_app(
        tmp_path / "app",
        recipe=b"def train(): ...\n",
        model="m",
        metric="accuracy",
        inputs=["x", "y"],
        settings=settings,
        run_folder=tmp_path,
    )
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text("utf-8"))
    config = project["tool"]["flwr"]["app"]["config"]
    assert {name.removeprefix("set-"): value for name, value in config.items() if name.startswith("set-")} == settings
    assert (config["run-folder"], config["model"], config["inputs"]) == (str(tmp_path), "m", "x,y")
    assert (tmp_path / "app" / "recipe.py").read_bytes() == b"def train(): ...\n"


def test_an_app_s_config_is_read_from_its_bundle() -> None:
    assert check_fab(fab(**{"own/server_app.py": "app = 1"})) == {"num-server-rounds": 3, "lr.first": 0.1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no zip", "no Flower App Bundle, as `flwr build` makes one"),
        (fab(**{"pyproject.toml": "-"}), "the app has no pyproject.toml"),
        (fab(**{".info/CONTENT": "-"}), "the app has no .info/CONTENT"),
        (fab(**{"pyproject.toml": "["}), "pyproject.toml cannot be read"),
        (fab(**{"pyproject.toml": "a = 1"}), r"has no \[tool.flwr.app\]"),
        (fab(**{"pyproject.toml": PROJECT.replace("clientapp", "other")}), "names no clientapp"),
        (fab(**{"../outside.py": "x"}), "would lie outside of it"),
        (fab(**{"/etc/passwd": "x"}), "would lie outside of it"),
        (b"x" * (10 * 1024 * 1024 + 1), "Flower takes at most"),
        (fab(**{"pyproject.toml": PROJECT + "#" * 1024**2}), "the app's pyproject.toml is above the limit of 1 MiB"),
        (fab()[:-40], "no Flower App Bundle"),
    ],
)
def test_what_is_no_app(content: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_fab(content)


@pytest.mark.parametrize("method", ["Start", "Stop", "Promote", "Get", "List", "Watch"])
def test_who_may_ask(method: str) -> None:
    """Data teams and operators have models trained; whoever uses models may look."""
    keeper = Gatekeeper(mesh="dev", verifier=None, policy=POLICY)
    name = f"/nearmesh.v1.RunService/{method}"
    for role in ("data", "operator"):
        keeper.check(Identity("ann", role), name)
    if method in ("Get", "List", "Watch"):
        keeper.check(Identity("app", "client"), name)
    for role in ("node", "gateway", *(["client"] if method in ("Start", "Stop", "Promote") else [])):
        with pytest.raises(PermissionDenied):
            keeper.check(Identity("x", role), name)
