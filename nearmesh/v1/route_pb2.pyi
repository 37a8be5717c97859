from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VectorNodesRequest(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: str
    def __init__(self, region: _Optional[str] = ...) -> None: ...

class VectorNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[VectorPlace]
    def __init__(self, nodes: _Optional[_Iterable[_Union[VectorPlace, _Mapping]]] = ...) -> None: ...

class VectorPlace(_message.Message):
    __slots__ = ("node", "site", "region", "address", "server_name", "live", "network_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    region: str
    address: str
    server_name: str
    live: bool
    network_ms: float
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., live: _Optional[bool] = ..., network_ms: _Optional[float] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("model", "region", "site", "objective", "latitude", "longitude")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    model: str
    region: str
    site: str
    objective: str
    latitude: float
    longitude: float
    def __init__(self, model: _Optional[str] = ..., region: _Optional[str] = ..., site: _Optional[str] = ..., objective: _Optional[str] = ..., latitude: _Optional[float] = ..., longitude: _Optional[float] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("model", "version", "digest", "region", "objective", "deadline_ms", "candidates", "generation", "demand_per_s", "expires_at_s", "bound", "allowed_regions", "note", "ready_in_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DEMAND_PER_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_REGIONS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    READY_IN_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    region: str
    objective: str
    deadline_ms: float
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    generation: int
    demand_per_s: float
    expires_at_s: float
    bound: bool
    allowed_regions: _containers.RepeatedScalarFieldContainer[str]
    note: str
    ready_in_ms: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., region: _Optional[str] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., generation: _Optional[int] = ..., demand_per_s: _Optional[float] = ..., expires_at_s: _Optional[float] = ..., bound: _Optional[bool] = ..., allowed_regions: _Optional[_Iterable[str]] = ..., note: _Optional[str] = ..., ready_in_ms: _Optional[float] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("node", "site", "region", "address", "server_name", "ready", "network_ms_p50", "network_ms_p95", "network_measured", "service_ms_p50", "service_ms_p95", "usd_per_hour", "usd_per_1000", "in_time", "why", "network_ms_quantiles", "service_ms_quantiles", "p_in_time", "share", "total_ms_p50", "total_ms_p95", "total_ms_p99", "transfer_usd_per_1000", "spot", "inferences_per_second", "utilization")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_P50_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_P95_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MEASURED_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_P50_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_P95_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    USD_PER_1000_FIELD_NUMBER: _ClassVar[int]
    IN_TIME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    P_IN_TIME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_P50_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_P95_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_P99_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_USD_PER_1000_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    node: str
    site: str
    region: str
    address: str
    server_name: str
    ready: bool
    network_ms_p50: float
    network_ms_p95: float
    network_measured: bool
    service_ms_p50: float
    service_ms_p95: float
    usd_per_hour: float
    usd_per_1000: float
    in_time: bool
    why: str
    network_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    service_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    p_in_time: float
    share: float
    total_ms_p50: float
    total_ms_p95: float
    total_ms_p99: float
    transfer_usd_per_1000: float
    spot: bool
    inferences_per_second: float
    utilization: float
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., ready: _Optional[bool] = ..., network_ms_p50: _Optional[float] = ..., network_ms_p95: _Optional[float] = ..., network_measured: _Optional[bool] = ..., service_ms_p50: _Optional[float] = ..., service_ms_p95: _Optional[float] = ..., usd_per_hour: _Optional[float] = ..., usd_per_1000: _Optional[float] = ..., in_time: _Optional[bool] = ..., why: _Optional[str] = ..., network_ms_quantiles: _Optional[_Iterable[float]] = ..., service_ms_quantiles: _Optional[_Iterable[float]] = ..., p_in_time: _Optional[float] = ..., share: _Optional[float] = ..., total_ms_p50: _Optional[float] = ..., total_ms_p95: _Optional[float] = ..., total_ms_p99: _Optional[float] = ..., transfer_usd_per_1000: _Optional[float] = ..., spot: _Optional[bool] = ..., inferences_per_second: _Optional[float] = ..., utilization: _Optional[float] = ...) -> None: ...

class ReportLatencyRequest(_message.Message):
    __slots__ = ("region", "samples", "calls")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    region: str
    samples: _containers.RepeatedCompositeFieldContainer[LatencySample]
    calls: _containers.RepeatedCompositeFieldContainer[CallReport]
    def __init__(self, region: _Optional[str] = ..., samples: _Optional[_Iterable[_Union[LatencySample, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[CallReport, _Mapping]]] = ...) -> None: ...

class CallReport(_message.Message):
    __slots__ = ("model", "node", "objective", "answered", "failed", "within_p50", "within_p95", "within_p99", "total_ms", "predicted_ms", "late", "compared")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P50_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P95_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P99_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    model: str
    node: str
    objective: str
    answered: int
    failed: int
    within_p50: int
    within_p95: int
    within_p99: int
    total_ms: float
    predicted_ms: float
    late: int
    compared: int
    def __init__(self, model: _Optional[str] = ..., node: _Optional[str] = ..., objective: _Optional[str] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., within_p50: _Optional[int] = ..., within_p95: _Optional[int] = ..., within_p99: _Optional[int] = ..., total_ms: _Optional[float] = ..., predicted_ms: _Optional[float] = ..., late: _Optional[int] = ..., compared: _Optional[int] = ...) -> None: ...

class LatencySample(_message.Message):
    __slots__ = ("node", "network_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    network_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, node: _Optional[str] = ..., network_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class ReportLatencyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLatenciesRequest(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: str
    def __init__(self, region: _Optional[str] = ...) -> None: ...

class ListLatenciesResponse(_message.Message):
    __slots__ = ("latencies", "note")
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    latencies: _containers.RepeatedCompositeFieldContainer[Latency]
    note: str
    def __init__(self, latencies: _Optional[_Iterable[_Union[Latency, _Mapping]]] = ..., note: _Optional[str] = ...) -> None: ...

class Latency(_message.Message):
    __slots__ = ("region", "node", "network_ms_p50", "network_ms_p95", "measured", "address", "server_name")
    REGION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_P50_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_P95_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    region: str
    node: str
    network_ms_p50: float
    network_ms_p95: float
    measured: bool
    address: str
    server_name: str
    def __init__(self, region: _Optional[str] = ..., node: _Optional[str] = ..., network_ms_p50: _Optional[float] = ..., network_ms_p95: _Optional[float] = ..., measured: _Optional[bool] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ...) -> None: ...

class ListAccuracyRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListAccuracyResponse(_message.Message):
    __slots__ = ("accuracy",)
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    accuracy: _containers.RepeatedCompositeFieldContainer[Accuracy]
    def __init__(self, accuracy: _Optional[_Iterable[_Union[Accuracy, _Mapping]]] = ...) -> None: ...

class Accuracy(_message.Message):
    __slots__ = ("region", "model", "objective", "reporter", "answered", "failed", "compared", "late", "within_p50", "within_p95", "within_p99", "actual_over_predicted")
    REGION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    REPORTER_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P50_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P95_FIELD_NUMBER: _ClassVar[int]
    WITHIN_P99_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_OVER_PREDICTED_FIELD_NUMBER: _ClassVar[int]
    region: str
    model: str
    objective: str
    reporter: str
    answered: float
    failed: float
    compared: float
    late: float
    within_p50: float
    within_p95: float
    within_p99: float
    actual_over_predicted: float
    def __init__(self, region: _Optional[str] = ..., model: _Optional[str] = ..., objective: _Optional[str] = ..., reporter: _Optional[str] = ..., answered: _Optional[float] = ..., failed: _Optional[float] = ..., compared: _Optional[float] = ..., late: _Optional[float] = ..., within_p50: _Optional[float] = ..., within_p95: _Optional[float] = ..., within_p99: _Optional[float] = ..., actual_over_predicted: _Optional[float] = ...) -> None: ...

class WatchSnapshotRequest(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: str
    def __init__(self, region: _Optional[str] = ...) -> None: ...

class SignedSnapshot(_message.Message):
    __slots__ = ("snapshot", "signature")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    snapshot: bytes
    signature: bytes
    def __init__(self, snapshot: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("mesh", "generation", "issued_at_s", "expires_at_s", "nodes", "models", "tables", "removed_nodes", "jwks_json", "only_region")
    MESH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NODES_FIELD_NUMBER: _ClassVar[int]
    JWKS_JSON_FIELD_NUMBER: _ClassVar[int]
    ONLY_REGION_FIELD_NUMBER: _ClassVar[int]
    mesh: str
    generation: int
    issued_at_s: float
    expires_at_s: float
    nodes: _containers.RepeatedCompositeFieldContainer[SnapshotNode]
    models: _containers.RepeatedCompositeFieldContainer[SnapshotModel]
    tables: _containers.RepeatedCompositeFieldContainer[SnapshotTable]
    removed_nodes: _containers.RepeatedScalarFieldContainer[str]
    jwks_json: str
    only_region: str
    def __init__(self, mesh: _Optional[str] = ..., generation: _Optional[int] = ..., issued_at_s: _Optional[float] = ..., expires_at_s: _Optional[float] = ..., nodes: _Optional[_Iterable[_Union[SnapshotNode, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[SnapshotModel, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[SnapshotTable, _Mapping]]] = ..., removed_nodes: _Optional[_Iterable[str]] = ..., jwks_json: _Optional[str] = ..., only_region: _Optional[str] = ...) -> None: ...

class SnapshotNode(_message.Message):
    __slots__ = ("id", "site", "region", "public_address", "mesh_address", "usd_per_hour", "spot")
    ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESH_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    id: str
    site: str
    region: str
    public_address: str
    mesh_address: str
    usd_per_hour: float
    spot: bool
    def __init__(self, id: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., public_address: _Optional[str] = ..., mesh_address: _Optional[str] = ..., usd_per_hour: _Optional[float] = ..., spot: _Optional[bool] = ...) -> None: ...

class SnapshotModel(_message.Message):
    __slots__ = ("name", "version", "digest", "objective", "deadline_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    digest: str
    objective: str
    deadline_ms: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ...) -> None: ...

class SnapshotTable(_message.Message):
    __slots__ = ("region", "addresses", "routes", "nearest")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    region: str
    addresses: _containers.RepeatedCompositeFieldContainer[SnapshotAddress]
    routes: _containers.RepeatedCompositeFieldContainer[SnapshotRoute]
    nearest: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, region: _Optional[str] = ..., addresses: _Optional[_Iterable[_Union[SnapshotAddress, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[SnapshotRoute, _Mapping]]] = ..., nearest: _Optional[_Iterable[int]] = ...) -> None: ...

class SnapshotAddress(_message.Message):
    __slots__ = ("node", "public_address", "mesh_address")
    NODE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESH_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    node: int
    public_address: str
    mesh_address: str
    def __init__(self, node: _Optional[int] = ..., public_address: _Optional[str] = ..., mesh_address: _Optional[str] = ...) -> None: ...

class SnapshotRoute(_message.Message):
    __slots__ = ("model", "objective", "choices")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    model: int
    objective: str
    choices: _containers.RepeatedCompositeFieldContainer[SnapshotChoice]
    def __init__(self, model: _Optional[int] = ..., objective: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[SnapshotChoice, _Mapping]]] = ...) -> None: ...

class SnapshotChoice(_message.Message):
    __slots__ = ("node", "share", "network_ms_quantiles", "service_ms_quantiles", "usd_per_1000", "p_in_time", "why")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    SERVICE_MS_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    USD_PER_1000_FIELD_NUMBER: _ClassVar[int]
    P_IN_TIME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    node: int
    share: float
    network_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    service_ms_quantiles: _containers.RepeatedScalarFieldContainer[float]
    usd_per_1000: float
    p_in_time: float
    why: str
    def __init__(self, node: _Optional[int] = ..., share: _Optional[float] = ..., network_ms_quantiles: _Optional[_Iterable[float]] = ..., service_ms_quantiles: _Optional[_Iterable[float]] = ..., usd_per_1000: _Optional[float] = ..., p_in_time: _Optional[float] = ..., why: _Optional[str] = ...) -> None: ...
