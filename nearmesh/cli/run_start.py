"""What `nearmesh run start` and `promote` are told, checked as far as it can be before a mesh is asked."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.deploy import Names, Steps
from nearmesh.cli.price import Duration
from nearmesh.errors import InvalidInput
from nearmesh.strategies import DEFAULT, STRATEGIES, check, options, strategy

if TYPE_CHECKING:
    from nearmesh.v1 import run_pb2

F = TypeVar("F", bound=Callable[..., Any])

# Of one site's data alone no round is federated.
MIN_SITES = 2
# The control plane knows which of them a clock shows.
_WINDOW = re.compile(r"\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2}", flags=re.ASCII)
# Of the mesh's own app; an app of the data team's own brings its own.
_OF_RECIPES = ("strategy", "options", "largest_norm", "noise_multiplier", "clipping_norm", "delta")


class Seconds(click.ParamType[float]):
    """A number of seconds, or a time such as 90s, 30m or 2h."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if re.fullmatch(r"\d+(\.\d+)?", value, flags=re.ASCII) and float(value):
            return float(value)
        return Duration().convert(value, param, context)


class Setting(click.ParamType[tuple[str, str]]):
    """NAME=VALUE, the value as in TOML; what is none is a text."""

    name = "setting"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, given = value.partition("=")
        if not name.strip() or not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, context)
        try:
            tomllib.loads(f"value = {given}")
        except tomllib.TOMLDecodeError:
            # JSON's strings are TOML's.
            given = json.dumps(given, ensure_ascii=False)
        return name.strip(), given.strip()


class Option(click.ParamType[tuple[str, float]]):
    """NAME=NUMBER."""

    name = "option"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        name, _, given = value.partition("=")
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not name.strip() or not math.isfinite(number):
            self.fail(f"{value!r} is not NAME=NUMBER; `nearmesh run strategies` lists the names", param, context)
        return name.strip(), number


class Window(click.ParamType[str]):
    """HH:MM-HH:MM."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        if not _WINDOW.fullmatch(value):
            self.fail(f"{value!r} is no window; expected such as 22:00-06:00, UTC", param, context)
        return str(value)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order of the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


start_options = together(
    click.option("--model", required=True, metavar="NAME", help="The model to train further."),
    click.option("--version", default="", help="Begin from this one.  [default: the wanted one, else the newest]"),
    click.option("--rounds", type=click.IntRange(1), required=True, help="How many."),
    click.option(
        "--min-sites",
        type=click.IntRange(1),
        help=f"A round counts with so many.  [default: {MIN_SITES}, or what the strategy needs]",
    ),
    click.option(
        "--strategy",
        type=click.Choice(list(STRATEGIES)),
        help=f"How updates become the next model.  [default: {DEFAULT}]",
    ),
    click.option(
        "--option",
        "options",
        type=Option(),
        multiple=True,
        metavar="NAME=NUMBER",
        help="For the strategy; may be repeated. `nearmesh run strategies` lists them.",
    ),
    click.option(
        "--set",
        "settings",
        type=Setting(),
        multiple=True,
        metavar="NAME=VALUE",
        help="For the recipe, or the app's run config; may be repeated.",
    ),
    click.option(
        "--app",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A Flower app of your own, in place of the package's recipe.",
    ),
    click.option(
        "--round-timeout",
        type=Seconds(),
        default="120",
        show_default=True,
        metavar="SECONDS",
        help="A site that takes longer is left out of the round.",
    ),
    click.option("--sites", type=Names(), default=(), metavar="SITE,SITE", help="Ask these alone. Default: all."),
    click.option("--largest-norm", type=click.FloatRange(0), default=0.0, help="Shorten longer updates to it."),
    click.option(
        "--noise-multiplier", type=click.FloatRange(0, min_open=True), help="Differential privacy: the noise,"
    ),
    click.option("--clipping-norm", type=click.FloatRange(0, min_open=True), help="the longest update,"),
    click.option(
        "--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="and the risk.  [default: 1e-5]"
    ),
    click.option("--window", type=Window(), metavar="22:00-06:00", help="Begin rounds only then, UTC."),
    click.option(
        "--idle-below",
        type=click.FloatRange(0, 1),
        default=0.0,
        help="Only while sites serve with less than this part of themselves.",
    ),
    click.option(
        "--cheaper-than",
        type=click.FloatRange(0),
        default=0.0,
        metavar="USD",
        help="Only while their nodes cost less in an hour.",
    ),
    click.option("--idempotency-key", default="", metavar="KEY", help="The same key again is the same run."),
    click.option("--auto-promote", is_flag=True, help="Go on as `run promote` does when the rounds are done."),
)

promote_options = together(
    click.option(
        "--steps", type=Steps(), default=(), metavar="5,25,50", help="Its canary's shares, per cent; 0 only compares."
    ),
    click.option("--step-time", type=Duration(), metavar="30s", help="How long each step is watched."),
    click.option("--step-requests", type=click.IntRange(0), default=0, help="Requests that a step waits for."),
    click.option(
        "--largest-site-loss",
        type=click.FloatRange(0),
        help="What any site may lose of the metric.  [default: the package's]",
    ),
    click.option(
        "--smallest-mean-gain", type=float, help="What all together have to gain of it.  [default: the package's]"
    ),
)


def request(given: dict[str, Any]) -> run_pb2.StartRunRequest:
    """The request of `start_options`, without promotion and the app. Raises click.UsageError."""
    from nearmesh.v1 import run_pb2

    return run_pb2.StartRunRequest(
        model=given["model"],
        version=given["version"],
        rounds=given["rounds"],
        min_sites=_checked_min_sites(given),
        strategy="" if given["app"] else given["strategy"] or DEFAULT,
        strategy_options=dict(given["options"]),
        settings=dict(given["settings"]),
        round_timeout_s=given["round_timeout"],
        sites=given["sites"],
        largest_norm=given["largest_norm"],
        privacy=_privacy(given),
        schedule=_schedule(given),
        idempotency_key=given["idempotency_key"],
        auto_promote=given["auto_promote"],
    )


def _checked_min_sites(given: dict[str, Any]) -> int:
    """How many sites a round needs, with everything else that the strategy is told checked. Raises UsageError."""
    if given["app"]:
        for name in _OF_RECIPES:
            if given[name]:
                option = "--" + name.replace("options", "option").replace("_", "-")
                raise click.UsageError(f"{option} does not go with --app: the app has a strategy of its own")
        return given["min_sites"] or MIN_SITES
    name, told = given["strategy"] or DEFAULT, dict(given["options"])
    try:
        fewest = strategy(name).fewest(options(name, told))
        min_sites = given["min_sites"] or max(MIN_SITES, fewest)
        check(name, told, min_sites)
    except InvalidInput as error:
        raise click.UsageError(error.message.replace("(min-sites)", "(--min-sites)")) from None
    return int(min_sites)


def _privacy(given: dict[str, Any]) -> run_pb2.Privacy | None:
    from nearmesh.v1 import run_pb2

    if bool(given["noise_multiplier"]) != bool(given["clipping_norm"]) or (
        given["delta"] and not given["noise_multiplier"]
    ):
        raise click.UsageError(
            "differential privacy needs --noise-multiplier and --clipping-norm, and may have --delta"
        )
    if not given["noise_multiplier"]:
        return None
    return run_pb2.Privacy(
        noise_multiplier=given["noise_multiplier"],
        clipping_norm=given["clipping_norm"],
        delta=given["delta"] or 0.0,
    )


def _schedule(given: dict[str, Any]) -> run_pb2.Schedule | None:
    from nearmesh.v1 import run_pb2

    found = run_pb2.Schedule(
        window=given["window"] or "", idle_below=given["idle_below"], usd_per_hour_below=given["cheaper_than"]
    )
    return found if found != run_pb2.Schedule() else None


def promotion(given: dict[str, Any]) -> run_pb2.PromoteOptions:
    """The message of `promote_options`."""
    from nearmesh.v1 import run_pb2

    return run_pb2.PromoteOptions(
        steps=given["steps"],
        step_s=given["step_time"] or 0.0,
        step_requests=given["step_requests"],
        largest_site_loss=given["largest_site_loss"],
        smallest_mean_gain=given["smallest_mean_gain"],
    )
