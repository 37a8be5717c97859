"""What leaves a site in the messages of rounds: weights, counts and metrics, and nothing else.

Metrics are few and finite, under names that stand in the recipe; errors are `failures.outside`. Whatever else a recipe
says stays here.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from nearmesh.round_messages import ARRAYS, BASE, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND, digest
from nearmesh_agent.training.failures import Diverged, RecipeError, outside
from nearmesh_agent.training.recipe import ACCURACY, LOSS, Arrays

log = logging.getLogger(__name__)

# More is no summary any more, and a way to carry data.
MOST_METRICS = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,47}")


def answer(
    asked: Message, arrays: Arrays, examples: int, metrics: Mapping[str, float], trained: Arrays | None = None
) -> Message:
    """To a message that came with `arrays`; `trained` are what training made of them; `metrics` are plain."""
    number = asked.content.config_records.get(CONFIG, ConfigRecord()).get(SERVER_ROUND)
    records = RecordDict(
        {
            METRICS: MetricRecord({NUM_EXAMPLES: examples, **metrics}),
            CONFIG: ConfigRecord({SERVER_ROUND: number if isinstance(number, int) else 0, BASE: digest(arrays)}),
        }
    )
    if trained is not None:
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in trained.items()})
    return Message(records, reply_to=asked)


def failure(asked: Message, error: BaseException) -> Message:
    """Without the error's own words, which may hold data."""
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=outside(error)), reply_to=asked)


def judged(metrics: Mapping[str, float], metric: str) -> None:
    """The metric that is judged has to be there. Raises RecipeError, Diverged."""
    if metric not in metrics:
        raise RecipeError(f"the recipe gives {', '.join(metrics) or 'no metrics'}, and {metric!r} is what is judged")
    if not math.isfinite(metrics[metric]):
        raise Diverged(f"{metric} is {metrics[metric]}")


def plain(metrics: Mapping[str, float], words: Collection[str]) -> dict[str, float]:
    """What may leave of a recipe's metrics: finite numbers, under names that are among its own words."""
    found = {
        name: value
        for name, value in metrics.items()
        if _NAME.fullmatch(name) and (name in words or name in (LOSS, ACCURACY)) and math.isfinite(value)
    }
    if left_out := metrics.keys() - found.keys():
        log.warning(
            "left out of the answer, as not finite or under a name that the recipe does not spell out: %s",
            ", ".join(sorted(left_out)),
        )
    if len(found) > MOST_METRICS:
        raise RecipeError(f"{len(found)} metrics; at most {MOST_METRICS} leave a site")
    return found
