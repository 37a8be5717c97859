from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_WAITING: _ClassVar[RunState]
    RUN_STATE_TRAINING: _ClassVar[RunState]
    RUN_STATE_TRAINED: _ClassVar[RunState]
    RUN_STATE_CHECKING: _ClassVar[RunState]
    RUN_STATE_PUBLISHING: _ClassVar[RunState]
    RUN_STATE_ROLLING_OUT: _ClassVar[RunState]
    RUN_STATE_SERVED: _ClassVar[RunState]
    RUN_STATE_REFUSED: _ClassVar[RunState]
    RUN_STATE_ROLLED_BACK: _ClassVar[RunState]
    RUN_STATE_STOPPED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]

class SiteAnswer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SITE_ANSWER_UNSPECIFIED: _ClassVar[SiteAnswer]
    SITE_ANSWER_COUNTED: _ClassVar[SiteAnswer]
    SITE_ANSWER_MISSING: _ClassVar[SiteAnswer]
    SITE_ANSWER_FAILED: _ClassVar[SiteAnswer]
    SITE_ANSWER_REFUSED: _ClassVar[SiteAnswer]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_WAITING: RunState
RUN_STATE_TRAINING: RunState
RUN_STATE_TRAINED: RunState
RUN_STATE_CHECKING: RunState
RUN_STATE_PUBLISHING: RunState
RUN_STATE_ROLLING_OUT: RunState
RUN_STATE_SERVED: RunState
RUN_STATE_REFUSED: RunState
RUN_STATE_ROLLED_BACK: RunState
RUN_STATE_STOPPED: RunState
RUN_STATE_FAILED: RunState
SITE_ANSWER_UNSPECIFIED: SiteAnswer
SITE_ANSWER_COUNTED: SiteAnswer
SITE_ANSWER_MISSING: SiteAnswer
SITE_ANSWER_FAILED: SiteAnswer
SITE_ANSWER_REFUSED: SiteAnswer

class StartRunRequest(_message.Message):
    __slots__ = ("model", "version", "rounds", "min_sites", "strategy", "strategy_options", "round_timeout_s", "settings", "app", "idempotency_key", "auto_promote", "sites", "largest_norm", "privacy", "schedule", "promote")
    class StrategyOptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SITES_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    AUTO_PROMOTE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_NORM_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    rounds: int
    min_sites: int
    strategy: str
    strategy_options: _containers.ScalarMap[str, float]
    round_timeout_s: float
    settings: _containers.ScalarMap[str, str]
    app: bytes
    idempotency_key: str
    auto_promote: bool
    sites: _containers.RepeatedScalarFieldContainer[str]
    largest_norm: float
    privacy: Privacy
    schedule: Schedule
    promote: PromoteOptions
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., rounds: _Optional[int] = ..., min_sites: _Optional[int] = ..., strategy: _Optional[str] = ..., strategy_options: _Optional[_Mapping[str, float]] = ..., round_timeout_s: _Optional[float] = ..., settings: _Optional[_Mapping[str, str]] = ..., app: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ..., auto_promote: _Optional[bool] = ..., sites: _Optional[_Iterable[str]] = ..., largest_norm: _Optional[float] = ..., privacy: _Optional[_Union[Privacy, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ..., promote: _Optional[_Union[PromoteOptions, _Mapping]] = ...) -> None: ...

class Privacy(_message.Message):
    __slots__ = ("noise_multiplier", "clipping_norm", "delta")
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    CLIPPING_NORM_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    noise_multiplier: float
    clipping_norm: float
    delta: float
    def __init__(self, noise_multiplier: _Optional[float] = ..., clipping_norm: _Optional[float] = ..., delta: _Optional[float] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("window", "idle_below", "usd_per_hour_below")
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    IDLE_BELOW_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_BELOW_FIELD_NUMBER: _ClassVar[int]
    window: str
    idle_below: float
    usd_per_hour_below: float
    def __init__(self, window: _Optional[str] = ..., idle_below: _Optional[float] = ..., usd_per_hour_below: _Optional[float] = ...) -> None: ...

class PromoteOptions(_message.Message):
    __slots__ = ("steps", "step_s", "step_requests", "largest_site_loss", "smallest_mean_gain")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    STEP_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SITE_LOSS_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_MEAN_GAIN_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[float]
    step_s: float
    step_requests: int
    largest_site_loss: float
    smallest_mean_gain: float
    def __init__(self, steps: _Optional[_Iterable[float]] = ..., step_s: _Optional[float] = ..., step_requests: _Optional[int] = ..., largest_site_loss: _Optional[float] = ..., smallest_mean_gain: _Optional[float] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("model", "limit")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    model: str
    limit: int
    def __init__(self, model: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class StopRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class PromoteRunRequest(_message.Message):
    __slots__ = ("run", "options")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    run: str
    options: PromoteOptions
    def __init__(self, run: _Optional[str] = ..., options: _Optional[_Union[PromoteOptions, _Mapping]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("id", "model", "parent_version", "parent_digest", "asked", "state", "reason", "actor", "created_at_s", "ended_at_s", "rounds", "progress", "gate", "version", "digest", "rollout", "resumed", "metric", "epsilon", "delta", "own_app")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    OWN_APP_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    parent_version: str
    parent_digest: str
    asked: StartRunRequest
    state: RunState
    reason: str
    actor: str
    created_at_s: float
    ended_at_s: float
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    progress: RoundProgress
    gate: GateResult
    version: str
    digest: str
    rollout: int
    resumed: int
    metric: str
    epsilon: float
    delta: float
    own_app: bool
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., parent_version: _Optional[str] = ..., parent_digest: _Optional[str] = ..., asked: _Optional[_Union[StartRunRequest, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., created_at_s: _Optional[float] = ..., ended_at_s: _Optional[float] = ..., rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., progress: _Optional[_Union[RoundProgress, _Mapping]] = ..., gate: _Optional[_Union[GateResult, _Mapping]] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., rollout: _Optional[int] = ..., resumed: _Optional[int] = ..., metric: _Optional[str] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., own_app: _Optional[bool] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("number", "began_at_s", "ended_at_s", "sites", "train_metrics", "metrics", "late")
    class TrainMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    number: int
    began_at_s: float
    ended_at_s: float
    sites: _containers.RepeatedCompositeFieldContainer[SiteRound]
    train_metrics: _containers.ScalarMap[str, float]
    metrics: _containers.ScalarMap[str, float]
    late: int
    def __init__(self, number: _Optional[int] = ..., began_at_s: _Optional[float] = ..., ended_at_s: _Optional[float] = ..., sites: _Optional[_Iterable[_Union[SiteRound, _Mapping]]] = ..., train_metrics: _Optional[_Mapping[str, float]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., late: _Optional[int] = ...) -> None: ...

class SiteRound(_message.Message):
    __slots__ = ("node", "site", "answer", "detail", "examples", "train_metrics", "metrics", "update_norm", "clipped", "train_s", "yielded_s", "suspect")
    class TrainMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    TRAIN_S_FIELD_NUMBER: _ClassVar[int]
    YIELDED_S_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    answer: SiteAnswer
    detail: str
    examples: int
    train_metrics: _containers.ScalarMap[str, float]
    metrics: _containers.ScalarMap[str, float]
    update_norm: float
    clipped: bool
    train_s: float
    yielded_s: float
    suspect: bool
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., answer: _Optional[_Union[SiteAnswer, str]] = ..., detail: _Optional[str] = ..., examples: _Optional[int] = ..., train_metrics: _Optional[_Mapping[str, float]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., update_norm: _Optional[float] = ..., clipped: _Optional[bool] = ..., train_s: _Optional[float] = ..., yielded_s: _Optional[float] = ..., suspect: _Optional[bool] = ...) -> None: ...

class RoundProgress(_message.Message):
    __slots__ = ("number", "phase", "began_at_s", "answered", "missing")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BEGAN_AT_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    number: int
    phase: str
    began_at_s: float
    answered: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., phase: _Optional[str] = ..., began_at_s: _Optional[float] = ..., answered: _Optional[_Iterable[str]] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class GateResult(_message.Message):
    __slots__ = ("passed", "checks")
    PASSED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    passed: bool
    checks: _containers.RepeatedCompositeFieldContainer[GateCheck]
    def __init__(self, passed: _Optional[bool] = ..., checks: _Optional[_Iterable[_Union[GateCheck, _Mapping]]] = ...) -> None: ...

class GateCheck(_message.Message):
    __slots__ = ("name", "passed", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    passed: bool
    detail: str
    def __init__(self, name: _Optional[str] = ..., passed: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
