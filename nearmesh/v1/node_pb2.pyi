from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_PULLING: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]
    REPLICA_STATE_UNLOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_UNLOADED: _ClassVar[ReplicaState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_PULLING: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
REPLICA_STATE_UNLOADING: ReplicaState
REPLICA_STATE_UNLOADED: ReplicaState

class JoinRequest(_message.Message):
    __slots__ = ("token", "csr_pem")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr_pem: bytes
    def __init__(self, token: _Optional[str] = ..., csr_pem: _Optional[bytes] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("certificate_pem", "ca_pem", "jwks_json")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    JWKS_JSON_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    ca_pem: bytes
    jwks_json: str
    def __init__(self, certificate_pem: _Optional[bytes] = ..., ca_pem: _Optional[bytes] = ..., jwks_json: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr_pem",)
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    csr_pem: bytes
    def __init__(self, csr_pem: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate_pem", "ca_pem", "jwks_json", "control_planes")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    JWKS_JSON_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PLANES_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    ca_pem: bytes
    jwks_json: str
    control_planes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, certificate_pem: _Optional[bytes] = ..., ca_pem: _Optional[bytes] = ..., jwks_json: _Optional[str] = ..., control_planes: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeReport(_message.Message):
    __slots__ = ("hello", "status")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    hello: NodeHello
    status: NodeStatus
    def __init__(self, hello: _Optional[_Union[NodeHello, _Mapping]] = ..., status: _Optional[_Union[NodeStatus, _Mapping]] = ...) -> None: ...

class NodeHello(_message.Message):
    __slots__ = ("agent_version", "public_address", "mesh_address", "metrics_address", "hardware", "providers", "usd_per_hour", "spot", "machine_type", "keeps_vectors")
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESH_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    MACHINE_TYPE_FIELD_NUMBER: _ClassVar[int]
    KEEPS_VECTORS_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    public_address: str
    mesh_address: str
    metrics_address: str
    hardware: str
    providers: _containers.RepeatedScalarFieldContainer[str]
    usd_per_hour: float
    spot: bool
    machine_type: str
    keeps_vectors: bool
    def __init__(self, agent_version: _Optional[str] = ..., public_address: _Optional[str] = ..., mesh_address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., hardware: _Optional[str] = ..., providers: _Optional[_Iterable[str]] = ..., usd_per_hour: _Optional[float] = ..., spot: _Optional[bool] = ..., machine_type: _Optional[str] = ..., keeps_vectors: _Optional[bool] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("replicas", "draining", "notice_s", "notice", "peers", "utilization", "in_flight", "sequences", "drained", "held", "disk_free_bytes", "training", "vectors")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NOTICE_S_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    draining: bool
    notice_s: float
    notice: str
    peers: _containers.RepeatedCompositeFieldContainer[PeerSample]
    utilization: float
    in_flight: int
    sequences: int
    drained: bool
    held: _containers.RepeatedScalarFieldContainer[str]
    disk_free_bytes: int
    training: TrainingStatus
    vectors: VectorStatus
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., draining: _Optional[bool] = ..., notice_s: _Optional[float] = ..., notice: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[PeerSample, _Mapping]]] = ..., utilization: _Optional[float] = ..., in_flight: _Optional[int] = ..., sequences: _Optional[int] = ..., drained: _Optional[bool] = ..., held: _Optional[_Iterable[str]] = ..., disk_free_bytes: _Optional[int] = ..., training: _Optional[_Union[TrainingStatus, _Mapping]] = ..., vectors: _Optional[_Union[VectorStatus, _Mapping]] = ...) -> None: ...

class VectorStatus(_message.Message):
    __slots__ = ("collections", "rows", "bytes", "detail")
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    collections: int
    rows: int
    bytes: int
    detail: str
    def __init__(self, collections: _Optional[int] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class TrainingStatus(_message.Message):
    __slots__ = ("models", "public_key", "running", "paused", "yielded_s", "cpu_share", "detail", "own_apps")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    YIELDED_S_FIELD_NUMBER: _ClassVar[int]
    CPU_SHARE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    OWN_APPS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    public_key: str
    running: bool
    paused: str
    yielded_s: float
    cpu_share: float
    detail: str
    own_apps: bool
    def __init__(self, models: _Optional[_Iterable[str]] = ..., public_key: _Optional[str] = ..., running: _Optional[bool] = ..., paused: _Optional[str] = ..., yielded_s: _Optional[float] = ..., cpu_share: _Optional[float] = ..., detail: _Optional[str] = ..., own_apps: _Optional[bool] = ...) -> None: ...

class PeerSample(_message.Message):
    __slots__ = ("node", "network_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    network_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, node: _Optional[str] = ..., network_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("model", "digest", "state", "detail", "variant", "service_ms_p50", "service_ms_p95", "inferences_per_second", "in_flight", "cold", "load_ms", "waiting", "service_ms_quantiles", "queue_ms_quantiles", "answered", "failed", "bytes_in", "bytes_out", "compared", "agreed", "pull_bytes", "pulled_bytes", "variant_why", "idle_s", "on_trial")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_P50_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_P95_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    COLD_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    PULL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VARIANT_WHY_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    ON_TRIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    digest: str
    state: ReplicaState
    detail: str
    variant: str
    service_ms_p50: float
    service_ms_p95: float
    inferences_per_second: float
    in_flight: int
    cold: bool
    load_ms: float
    waiting: int
    service_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    queue_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    answered: int
    failed: int
    bytes_in: int
    bytes_out: int
    compared: int
    agreed: int
    pull_bytes: int
    pulled_bytes: int
    variant_why: str
    idle_s: float
    on_trial: bool
    def __init__(self, model: _Optional[str] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., detail: _Optional[str] = ..., variant: _Optional[str] = ..., service_ms_p50: _Optional[float] = ..., service_ms_p95: _Optional[float] = ..., inferences_per_second: _Optional[float] = ..., in_flight: _Optional[int] = ..., cold: _Optional[bool] = ..., load_ms: _Optional[float] = ..., waiting: _Optional[int] = ..., service_ms_quantiles: _Optional[_Iterable[float]] = ..., queue_ms_quantiles: _Optional[_Iterable[float]] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., compared: _Optional[int] = ..., agreed: _Optional[int] = ..., pull_bytes: _Optional[int] = ..., pulled_bytes: _Optional[int] = ..., variant_why: _Optional[str] = ..., idle_s: _Optional[float] = ..., on_trial: _Optional[bool] = ...) -> None: ...

class WantedState(_message.Message):
    __slots__ = ("generation", "versions", "removed_nodes", "drain", "jwks_json", "registry_url", "withdrawn", "control_planes", "peers", "model_keys_pem", "training", "vector_nodes")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    JWKS_JSON_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_URL_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PLANES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_KEYS_PEM_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VECTOR_NODES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    versions: _containers.RepeatedCompositeFieldContainer[WantedVersion]
    removed_nodes: _containers.RepeatedScalarFieldContainer[str]
    drain: bool
    jwks_json: str
    registry_url: str
    withdrawn: bool
    control_planes: _containers.RepeatedScalarFieldContainer[str]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    model_keys_pem: _containers.RepeatedScalarFieldContainer[str]
    training: WantedTraining
    vector_nodes: _containers.RepeatedCompositeFieldContainer[VectorNode]
    def __init__(self, generation: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[WantedVersion, _Mapping]]] = ..., removed_nodes: _Optional[_Iterable[str]] = ..., drain: _Optional[bool] = ..., jwks_json: _Optional[str] = ..., registry_url: _Optional[str] = ..., withdrawn: _Optional[bool] = ..., control_planes: _Optional[_Iterable[str]] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., model_keys_pem: _Optional[_Iterable[str]] = ..., training: _Optional[_Union[WantedTraining, _Mapping]] = ..., vector_nodes: _Optional[_Iterable[_Union[VectorNode, _Mapping]]] = ...) -> None: ...

class VectorNode(_message.Message):
    __slots__ = ("node", "site", "region", "address", "server_name", "barred", "barred_from")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    BARRED_FIELD_NUMBER: _ClassVar[int]
    BARRED_FROM_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    region: str
    address: str
    server_name: str
    barred: bool
    barred_from: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., barred: _Optional[bool] = ..., barred_from: _Optional[_Iterable[str]] = ...) -> None: ...

class WantedTraining(_message.Message):
    __slots__ = ("superlink",)
    SUPERLINK_FIELD_NUMBER: _ClassVar[int]
    superlink: str
    def __init__(self, superlink: _Optional[str] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("node", "address", "server_name")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    node: str
    address: str
    server_name: str
    def __init__(self, node: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ...) -> None: ...

class WantedVersion(_message.Message):
    __slots__ = ("model", "version", "digest", "trial", "holders", "idle_unload_s", "registry", "rollout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    IDLE_UNLOAD_S_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    trial: Trial
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    idle_unload_s: float
    registry: str
    rollout: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., trial: _Optional[_Union[Trial, _Mapping]] = ..., holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ..., idle_unload_s: _Optional[float] = ..., registry: _Optional[str] = ..., rollout: _Optional[str] = ...) -> None: ...

class Trial(_message.Message):
    __slots__ = ("share", "mirror_share")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MIRROR_SHARE_FIELD_NUMBER: _ClassVar[int]
    share: float
    mirror_share: float
    def __init__(self, share: _Optional[float] = ..., mirror_share: _Optional[float] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("node", "address", "server_name", "same_site", "whole")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    SAME_SITE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    node: str
    address: str
    server_name: str
    same_site: bool
    whole: bool
    def __init__(self, node: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., same_site: _Optional[bool] = ..., whole: _Optional[bool] = ...) -> None: ...
