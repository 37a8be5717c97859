from nearmesh.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_KIND_UNSPECIFIED: _ClassVar[NodeKind]
    NODE_KIND_NODE: _ClassVar[NodeKind]
    NODE_KIND_GATEWAY: _ClassVar[NodeKind]
NODE_KIND_UNSPECIFIED: NodeKind
NODE_KIND_NODE: NodeKind
NODE_KIND_GATEWAY: NodeKind

class CreateJoinTokenRequest(_message.Message):
    __slots__ = ("kind", "node", "site", "region", "lifetime_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    kind: NodeKind
    node: str
    site: str
    region: str
    lifetime_s: float
    def __init__(self, kind: _Optional[_Union[NodeKind, str]] = ..., node: _Optional[str] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., lifetime_s: _Optional[float] = ...) -> None: ...

class CreateJoinTokenResponse(_message.Message):
    __slots__ = ("token", "expires_at_s")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_at_s: float
    def __init__(self, token: _Optional[str] = ..., expires_at_s: _Optional[float] = ...) -> None: ...

class IssueTokenRequest(_message.Message):
    __slots__ = ("subject", "role", "lifetime_s", "namespace")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    subject: str
    role: str
    lifetime_s: float
    namespace: str
    def __init__(self, subject: _Optional[str] = ..., role: _Optional[str] = ..., lifetime_s: _Optional[float] = ..., namespace: _Optional[str] = ...) -> None: ...

class IssueTokenResponse(_message.Message):
    __slots__ = ("token", "expires_at_s")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_at_s: float
    def __init__(self, token: _Optional[str] = ..., expires_at_s: _Optional[float] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "kind", "site", "region", "public_address", "mesh_address", "metrics_address", "hardware", "agent_version", "usd_per_hour", "live", "draining", "cordoned", "removed", "last_seen_s", "ready_replicas", "spot", "price_source", "notice", "notice_s", "utilization", "in_flight", "sequences", "drained", "training", "vectors")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESH_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CORDONED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    READY_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    PRICE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_S_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: NodeKind
    site: str
    region: str
    public_address: str
    mesh_address: str
    metrics_address: str
    hardware: str
    agent_version: str
    usd_per_hour: float
    live: bool
    draining: bool
    cordoned: bool
    removed: bool
    last_seen_s: float
    ready_replicas: int
    spot: bool
    price_source: str
    notice: str
    notice_s: float
    utilization: float
    in_flight: int
    sequences: int
    drained: bool
    training: _node_pb2.TrainingStatus
    vectors: _node_pb2.VectorStatus
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[NodeKind, str]] = ..., site: _Optional[str] = ..., region: _Optional[str] = ..., public_address: _Optional[str] = ..., mesh_address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., hardware: _Optional[str] = ..., agent_version: _Optional[str] = ..., usd_per_hour: _Optional[float] = ..., live: _Optional[bool] = ..., draining: _Optional[bool] = ..., cordoned: _Optional[bool] = ..., removed: _Optional[bool] = ..., last_seen_s: _Optional[float] = ..., ready_replicas: _Optional[int] = ..., spot: _Optional[bool] = ..., price_source: _Optional[str] = ..., notice: _Optional[str] = ..., notice_s: _Optional[float] = ..., utilization: _Optional[float] = ..., in_flight: _Optional[int] = ..., sequences: _Optional[int] = ..., drained: _Optional[bool] = ..., training: _Optional[_Union[_node_pb2.TrainingStatus, _Mapping]] = ..., vectors: _Optional[_Union[_node_pb2.VectorStatus, _Mapping]] = ...) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("node", "undo")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    node: str
    undo: bool
    def __init__(self, node: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class CordonNodeRequest(_message.Message):
    __slots__ = ("node", "undo")
    NODE_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    node: str
    undo: bool
    def __init__(self, node: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class SetPriceRequest(_message.Message):
    __slots__ = ("node", "usd_per_hour", "currency", "valid_for_s", "unset")
    NODE_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    VALID_FOR_S_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    node: str
    usd_per_hour: float
    currency: str
    valid_for_s: float
    unset: bool
    def __init__(self, node: _Optional[str] = ..., usd_per_hour: _Optional[float] = ..., currency: _Optional[str] = ..., valid_for_s: _Optional[float] = ..., unset: _Optional[bool] = ...) -> None: ...

class ListPricesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPricesResponse(_message.Message):
    __slots__ = ("nodes", "transfers", "feed")
    NODES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodePrice]
    transfers: _containers.RepeatedCompositeFieldContainer[TransferPrice]
    feed: PriceFeed
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodePrice, _Mapping]]] = ..., transfers: _Optional[_Iterable[_Union[TransferPrice, _Mapping]]] = ..., feed: _Optional[_Union[PriceFeed, _Mapping]] = ...) -> None: ...

class NodePrice(_message.Message):
    __slots__ = ("node", "usd_per_hour", "spot", "source", "amount", "currency", "valid_until_s", "note", "region", "machine_type")
    NODE_FIELD_NUMBER: _ClassVar[int]
    USD_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_S_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    MACHINE_TYPE_FIELD_NUMBER: _ClassVar[int]
    node: str
    usd_per_hour: float
    spot: bool
    source: str
    amount: float
    currency: str
    valid_until_s: float
    note: str
    region: str
    machine_type: str
    def __init__(self, node: _Optional[str] = ..., usd_per_hour: _Optional[float] = ..., spot: _Optional[bool] = ..., source: _Optional[str] = ..., amount: _Optional[float] = ..., currency: _Optional[str] = ..., valid_until_s: _Optional[float] = ..., note: _Optional[str] = ..., region: _Optional[str] = ..., machine_type: _Optional[str] = ...) -> None: ...

class TransferPrice(_message.Message):
    __slots__ = ("from_region", "to_region", "usd_per_gb", "source")
    FROM_REGION_FIELD_NUMBER: _ClassVar[int]
    TO_REGION_FIELD_NUMBER: _ClassVar[int]
    USD_PER_GB_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    from_region: str
    to_region: str
    usd_per_gb: float
    source: str
    def __init__(self, from_region: _Optional[str] = ..., to_region: _Optional[str] = ..., usd_per_gb: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class SetTransferPriceRequest(_message.Message):
    __slots__ = ("from_region", "to_region", "usd_per_gb", "unset")
    FROM_REGION_FIELD_NUMBER: _ClassVar[int]
    TO_REGION_FIELD_NUMBER: _ClassVar[int]
    USD_PER_GB_FIELD_NUMBER: _ClassVar[int]
    UNSET_FIELD_NUMBER: _ClassVar[int]
    from_region: str
    to_region: str
    usd_per_gb: float
    unset: bool
    def __init__(self, from_region: _Optional[str] = ..., to_region: _Optional[str] = ..., usd_per_gb: _Optional[float] = ..., unset: _Optional[bool] = ...) -> None: ...

class PriceFeed(_message.Message):
    __slots__ = ("source", "read_at_s", "prices", "error")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    READ_AT_S_FIELD_NUMBER: _ClassVar[int]
    PRICES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    source: str
    read_at_s: float
    prices: int
    error: str
    def __init__(self, source: _Optional[str] = ..., read_at_s: _Optional[float] = ..., prices: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("model", "objective", "deadline_ms", "regions", "any_region")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    ANY_REGION_FIELD_NUMBER: _ClassVar[int]
    model: str
    objective: str
    deadline_ms: float
    regions: _containers.RepeatedScalarFieldContainer[str]
    any_region: bool
    def __init__(self, model: _Optional[str] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., regions: _Optional[_Iterable[str]] = ..., any_region: _Optional[bool] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("model", "objective", "deadline_ms", "regions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    objective: str
    deadline_ms: float
    regions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., objective: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., regions: _Optional[_Iterable[str]] = ...) -> None: ...

class SetResidencyRequest(_message.Message):
    __slots__ = ("client_region", "regions")
    CLIENT_REGION_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    client_region: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client_region: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ...) -> None: ...

class Residency(_message.Message):
    __slots__ = ("client_region", "regions")
    CLIENT_REGION_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    client_region: str
    regions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client_region: _Optional[str] = ..., regions: _Optional[_Iterable[str]] = ...) -> None: ...

class ListResidencyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResidencyResponse(_message.Message):
    __slots__ = ("rules",)
    RULES_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[Residency]
    def __init__(self, rules: _Optional[_Iterable[_Union[Residency, _Mapping]]] = ...) -> None: ...

class ListControlPlanesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListControlPlanesResponse(_message.Message):
    __slots__ = ("control_planes",)
    CONTROL_PLANES_FIELD_NUMBER: _ClassVar[int]
    control_planes: _containers.RepeatedCompositeFieldContainer[ControlPlane]
    def __init__(self, control_planes: _Optional[_Iterable[_Union[ControlPlane, _Mapping]]] = ...) -> None: ...

class ControlPlane(_message.Message):
    __slots__ = ("id", "public_address", "mesh_address", "http_address", "leader", "seen_at_s", "term")
    ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MESH_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HTTP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_S_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    id: str
    public_address: str
    mesh_address: str
    http_address: str
    leader: bool
    seen_at_s: float
    term: int
    def __init__(self, id: _Optional[str] = ..., public_address: _Optional[str] = ..., mesh_address: _Optional[str] = ..., http_address: _Optional[str] = ..., leader: _Optional[bool] = ..., seen_at_s: _Optional[float] = ..., term: _Optional[int] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("at_s", "actor", "action", "subject", "detail")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    actor: str
    action: str
    subject: str
    detail: str
    def __init__(self, at_s: _Optional[float] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., subject: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
