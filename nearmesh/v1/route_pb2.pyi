from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResolveRequest(_message.Message):
    __slots__ = ("model", "region", "site", "objective")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    model: str
    region: str
    site: str
    objective: str
    def __init__(self, model: _Optional[str] = ..., region: _Optional[str] = ..., site: _Optional[str] = ..., objective: _Optional[str] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("model", "version", "digest", "region", "objective", "deadline_ms", "candidates")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    digest: str
    region: str
    objective: str
    deadline_ms: float
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., region: _Optional[str] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("node", "site", "region", "address", "server_name", "ready", "network_ms_p50", "network_ms_p95", "network_measured", "service_ms_p50", "service_ms_p95", "usd_per_hour", "usd_per_1000", "in_time", "why")
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
    def __init__(self, node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., ready: _Optional[bool] = ..., network_ms_p50: _Optional[float] = ..., network_ms_p95: _Optional[float] = ..., network_measured: _Optional[bool] = ..., service_ms_p50: _Optional[float] = ..., service_ms_p95: _Optional[float] = ..., usd_per_hour: _Optional[float] = ..., usd_per_1000: _Optional[float] = ..., in_time: _Optional[bool] = ..., why: _Optional[str] = ...) -> None: ...

class ReportLatencyRequest(_message.Message):
    __slots__ = ("region", "samples")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    region: str
    samples: _containers.RepeatedCompositeFieldContainer[LatencySample]
    def __init__(self, region: _Optional[str] = ..., samples: _Optional[_Iterable[_Union[LatencySample, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("latencies",)
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    latencies: _containers.RepeatedCompositeFieldContainer[Latency]
    def __init__(self, latencies: _Optional[_Iterable[_Union[Latency, _Mapping]]] = ...) -> None: ...

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
