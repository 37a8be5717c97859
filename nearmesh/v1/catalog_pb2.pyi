from nearmesh.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STRATEGY_UNSPECIFIED: _ClassVar[RolloutStrategy]
    ROLLOUT_STRATEGY_ALL: _ClassVar[RolloutStrategy]
    ROLLOUT_STRATEGY_ROLLING: _ClassVar[RolloutStrategy]
    ROLLOUT_STRATEGY_CANARY: _ClassVar[RolloutStrategy]

class RolloutChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_CHANGE_UNSPECIFIED: _ClassVar[RolloutChange]
    ROLLOUT_CHANGE_PAUSE: _ClassVar[RolloutChange]
    ROLLOUT_CHANGE_RESUME: _ClassVar[RolloutChange]
    ROLLOUT_CHANGE_ABORT: _ClassVar[RolloutChange]

class RolloutState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STATE_UNSPECIFIED: _ClassVar[RolloutState]
    ROLLOUT_STATE_RUNNING: _ClassVar[RolloutState]
    ROLLOUT_STATE_PAUSED: _ClassVar[RolloutState]
    ROLLOUT_STATE_ROLLING_BACK: _ClassVar[RolloutState]
    ROLLOUT_STATE_DONE: _ClassVar[RolloutState]
    ROLLOUT_STATE_ABORTED: _ClassVar[RolloutState]
    ROLLOUT_STATE_FAILED: _ClassVar[RolloutState]

class RolloutPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_PHASE_UNSPECIFIED: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_LOADING: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_STEPS: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_ROLLING: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_SCOUTING: _ClassVar[RolloutPhase]
ROLLOUT_STRATEGY_UNSPECIFIED: RolloutStrategy
ROLLOUT_STRATEGY_ALL: RolloutStrategy
ROLLOUT_STRATEGY_ROLLING: RolloutStrategy
ROLLOUT_STRATEGY_CANARY: RolloutStrategy
ROLLOUT_CHANGE_UNSPECIFIED: RolloutChange
ROLLOUT_CHANGE_PAUSE: RolloutChange
ROLLOUT_CHANGE_RESUME: RolloutChange
ROLLOUT_CHANGE_ABORT: RolloutChange
ROLLOUT_STATE_UNSPECIFIED: RolloutState
ROLLOUT_STATE_RUNNING: RolloutState
ROLLOUT_STATE_PAUSED: RolloutState
ROLLOUT_STATE_ROLLING_BACK: RolloutState
ROLLOUT_STATE_DONE: RolloutState
ROLLOUT_STATE_ABORTED: RolloutState
ROLLOUT_STATE_FAILED: RolloutState
ROLLOUT_PHASE_UNSPECIFIED: RolloutPhase
ROLLOUT_PHASE_LOADING: RolloutPhase
ROLLOUT_PHASE_STEPS: RolloutPhase
ROLLOUT_PHASE_ROLLING: RolloutPhase
ROLLOUT_PHASE_SCOUTING: RolloutPhase

class PublishRequest(_message.Message):
    __slots__ = ("manifest_json", "blob")
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    manifest_json: bytes
    blob: BlobPart
    def __init__(self, manifest_json: _Optional[bytes] = ..., blob: _Optional[_Union[BlobPart, _Mapping]] = ...) -> None: ...

class BlobPart(_message.Message):
    __slots__ = ("digest", "data", "chunk")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    digest: str
    data: bytes
    chunk: str
    def __init__(self, digest: _Optional[str] = ..., data: _Optional[bytes] = ..., chunk: _Optional[str] = ...) -> None: ...

class LacksRequest(_message.Message):
    __slots__ = ("blobs", "chunks")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedScalarFieldContainer[str]
    chunks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blobs: _Optional[_Iterable[str]] = ..., chunks: _Optional[_Iterable[str]] = ...) -> None: ...

class LacksResponse(_message.Message):
    __slots__ = ("blobs", "chunks")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedScalarFieldContainer[str]
    chunks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blobs: _Optional[_Iterable[str]] = ..., chunks: _Optional[_Iterable[str]] = ...) -> None: ...

class RegistryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegistryResponse(_message.Message):
    __slots__ = ("url", "model_keys_pem")
    URL_FIELD_NUMBER: _ClassVar[int]
    MODEL_KEYS_PEM_FIELD_NUMBER: _ClassVar[int]
    url: str
    model_keys_pem: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, url: _Optional[str] = ..., model_keys_pem: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("model", "version", "digest", "size_bytes", "created_at_s", "registry", "report_json", "lineage_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_JSON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    size_bytes: int
    created_at_s: float
    registry: str
    report_json: str
    lineage_json: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., created_at_s: _Optional[float] = ..., registry: _Optional[str] = ..., report_json: _Optional[str] = ..., lineage_json: _Optional[str] = ...) -> None: ...

class PullFromRequest(_message.Message):
    __slots__ = ("model", "version", "registry")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    registry: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., registry: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "versions", "deployments", "replicas", "objective", "deadline_ms", "regions", "idle", "asleep", "kept", "asleep_since_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    ASLEEP_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ASLEEP_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    objective: str
    deadline_ms: float
    regions: _containers.RepeatedScalarFieldContainer[str]
    idle: IdlePolicy
    asleep: bool
    kept: _containers.RepeatedScalarFieldContainer[str]
    asleep_since_s: float
    def __init__(self, name: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., regions: _Optional[_Iterable[str]] = ..., idle: _Optional[_Union[IdlePolicy, _Mapping]] = ..., asleep: _Optional[bool] = ..., kept: _Optional[_Iterable[str]] = ..., asleep_since_s: _Optional[float] = ...) -> None: ...

class IdlePolicy(_message.Message):
    __slots__ = ("model", "unload_after_s", "scale_to_zero_after_s", "keep")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    SCALE_TO_ZERO_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    model: str
    unload_after_s: float
    scale_to_zero_after_s: float
    keep: int
    def __init__(self, model: _Optional[str] = ..., unload_after_s: _Optional[float] = ..., scale_to_zero_after_s: _Optional[float] = ..., keep: _Optional[int] = ...) -> None: ...

class SetIdleRequest(_message.Message):
    __slots__ = ("model", "unload_after_s", "scale_to_zero_after_s", "keep")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    SCALE_TO_ZERO_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    model: str
    unload_after_s: float
    scale_to_zero_after_s: float
    keep: int
    def __init__(self, model: _Optional[str] = ..., unload_after_s: _Optional[float] = ..., scale_to_zero_after_s: _Optional[float] = ..., keep: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("node", "version", "status", "live")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    node: str
    version: str
    status: _node_pb2.ReplicaStatus
    live: bool
    def __init__(self, node: _Optional[str] = ..., version: _Optional[str] = ..., status: _Optional[_Union[_node_pb2.ReplicaStatus, _Mapping]] = ..., live: _Optional[bool] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("model", "version", "sites", "regions", "replicas", "strategy", "steps", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedScalarFieldContainer[str]
    replicas: int
    strategy: RolloutStrategy
    steps: _containers.RepeatedScalarFieldContainer[float]
    options: RolloutOptions
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[str]] = ..., replicas: _Optional[int] = ..., strategy: _Optional[_Union[RolloutStrategy, str]] = ..., steps: _Optional[_Iterable[float]] = ..., options: _Optional[_Union[RolloutOptions, _Mapping]] = ...) -> None: ...

class RolloutOptions(_message.Message):
    __slots__ = ("step_s", "step_requests", "node_limit_s", "mirror_share", "largest_error_rate", "latency_factor", "latency_floor_ms", "smallest_agreement")
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    STEP_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NODE_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    MIRROR_SHARE_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ERROR_RATE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FACTOR_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FLOOR_MS_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    step_s: float
    step_requests: int
    node_limit_s: float
    mirror_share: float
    largest_error_rate: float
    latency_factor: float
    latency_floor_ms: float
    smallest_agreement: float
    def __init__(self, step_s: _Optional[float] = ..., step_requests: _Optional[int] = ..., node_limit_s: _Optional[float] = ..., mirror_share: _Optional[float] = ..., largest_error_rate: _Optional[float] = ..., latency_factor: _Optional[float] = ..., latency_floor_ms: _Optional[float] = ..., smallest_agreement: _Optional[float] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("model", "version", "digest", "sites", "created_at_s", "actor", "regions", "replicas", "nodes", "rollout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    created_at_s: float
    actor: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    replicas: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    rollout: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., created_at_s: _Optional[float] = ..., actor: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ..., replicas: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., rollout: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("model", "rollout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    rollout: int
    def __init__(self, model: _Optional[str] = ..., rollout: _Optional[int] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ...) -> None: ...

class ChangeRolloutRequest(_message.Message):
    __slots__ = ("model", "change")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    change: RolloutChange
    def __init__(self, model: _Optional[str] = ..., change: _Optional[_Union[RolloutChange, str]] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("id", "model", "version", "digest", "sites", "regions", "replicas", "strategy", "steps", "options", "state", "reason", "phase", "step", "share", "actor", "created_at_s", "ended_at_s", "since_s", "nodes", "scout")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_S_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SCOUT_FIELD_NUMBER: _ClassVar[int]
    id: int
    model: str
    version: str
    digest: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    regions: _containers.RepeatedScalarFieldContainer[str]
    replicas: int
    strategy: RolloutStrategy
    steps: _containers.RepeatedScalarFieldContainer[float]
    options: RolloutOptions
    state: RolloutState
    reason: str
    phase: RolloutPhase
    step: int
    share: float
    actor: str
    created_at_s: float
    ended_at_s: float
    since_s: float
    nodes: _containers.RepeatedCompositeFieldContainer[RolloutNode]
    scout: str
    def __init__(self, id: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., regions: _Optional[_Iterable[str]] = ..., replicas: _Optional[int] = ..., strategy: _Optional[_Union[RolloutStrategy, str]] = ..., steps: _Optional[_Iterable[float]] = ..., options: _Optional[_Union[RolloutOptions, _Mapping]] = ..., state: _Optional[_Union[RolloutState, str]] = ..., reason: _Optional[str] = ..., phase: _Optional[_Union[RolloutPhase, str]] = ..., step: _Optional[int] = ..., share: _Optional[float] = ..., actor: _Optional[str] = ..., created_at_s: _Optional[float] = ..., ended_at_s: _Optional[float] = ..., since_s: _Optional[float] = ..., nodes: _Optional[_Iterable[_Union[RolloutNode, _Mapping]]] = ..., scout: _Optional[str] = ...) -> None: ...

class RolloutNode(_message.Message):
    __slots__ = ("node", "site", "standing_version", "changed_over", "state", "detail", "left_out", "pull_bytes", "pulled_bytes", "answered", "failed", "compared", "agreed", "service_ms_p95", "standing_ms_p95", "live")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STANDING_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_OVER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    PULL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_P95_FIELD_NUMBER: _ClassVar[int]
    STANDING_MS_P95_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    standing_version: str
    changed_over: bool
    state: _node_pb2.ReplicaState
    detail: str
    left_out: str
    pull_bytes: int
    pulled_bytes: int
    answered: int
    failed: int
    compared: int
    agreed: int
    service_ms_p95: float
    standing_ms_p95: float
    live: bool
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., standing_version: _Optional[str] = ..., changed_over: _Optional[bool] = ..., state: _Optional[_Union[_node_pb2.ReplicaState, str]] = ..., detail: _Optional[str] = ..., left_out: _Optional[str] = ..., pull_bytes: _Optional[int] = ..., pulled_bytes: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., compared: _Optional[int] = ..., agreed: _Optional[int] = ..., service_ms_p95: _Optional[float] = ..., standing_ms_p95: _Optional[float] = ..., live: _Optional[bool] = ...) -> None: ...
