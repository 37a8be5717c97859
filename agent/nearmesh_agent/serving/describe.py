"""What the node says about its models in the words of the Open Inference Protocol and Triton's extensions."""

from __future__ import annotations

from collections.abc import Iterable

from tritonclient.grpc import model_config_pb2 as config_pb2
from tritonclient.grpc import service_pb2

from nearmesh import __version__
from nearmesh.package import Package, Sequence, TensorSpec
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, LOWEST_PRIORITY
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.tally import BatchTally, ResponseTally, Total

# Those of Triton's extensions that hold here, by Triton's names.
_EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy", "sequence", "statistics")

_NEVER = Total(0, 0.0)


def server() -> service_pb2.ServerMetadataResponse:
    return service_pb2.ServerMetadataResponse(name="nearmesh", version=__version__, extensions=_EXTENSIONS)


def metadata(replica: Replica, versions: Iterable[str]) -> service_pb2.ModelMetadataResponse:
    """Inputs and outputs as a client sees them: what a sequence keeps on the node is not among them."""
    package = replica.package
    response = service_pb2.ModelMetadataResponse(
        name=package.name, versions=sorted(versions), platform=replica.platform
    )
    for spec in _visible(package, package.inputs):
        response.inputs.add(name=spec.name, datatype=spec.dtype, shape=spec.shape)
    for spec in _visible(package, package.outputs):
        response.outputs.add(name=spec.name, datatype=spec.dtype, shape=spec.shape)
    return response


def configuration(replica: Replica) -> service_pb2.ModelConfigResponse:
    """Triton's model configuration, as far as it means something here."""
    package = replica.package
    config = config_pb2.ModelConfig(
        name=package.name, platform=replica.platform, max_batch_size=package.batching.max_batch
    )
    for spec in _visible(package, package.inputs):
        config.input.add(
            name=spec.name, data_type=_data_type(spec.dtype), dims=_dims(package, spec), optional=spec.optional
        )
    for spec in _visible(package, package.outputs):
        config.output.add(name=spec.name, data_type=_data_type(spec.dtype), dims=_dims(package, spec))
    group = config_pb2.ModelInstanceGroup
    config.instance_group.add(count=replica.instances, kind=group.KIND_GPU if _on_gpu(replica) else group.KIND_CPU)
    config.model_transaction_policy.decoupled = package.decoupled
    if package.sequence:
        _describe_sequence(package, package.sequence, config)
    elif package.batching.max_batch:
        _describe_batching(package, config)
    for key, value in _parameters(package).items():
        config.parameters[key].string_value = value
    return service_pb2.ModelConfigResponse(config=config)


def _describe_batching(package: Package, config: config_pb2.ModelConfig) -> None:
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(package.batching.preferred_batch_sizes)
    batching.max_queue_delay_microseconds = _microseconds(package.batching.max_delay_ms / 1000)
    batching.priority_levels = LOWEST_PRIORITY
    batching.default_priority_level = DEFAULT_PRIORITY
    policy = batching.default_queue_policy
    # A request whose time is over is refused, and it may itself say how long it waits.
    policy.timeout_action = config_pb2.ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True
    # 0 where the package leaves it to the node.
    policy.max_queue_size = package.queue


def _describe_sequence(package: Package, sequence: Sequence, config: config_pb2.ModelConfig) -> None:
    """Triton's "oldest" strategy: requests of several sequences share an engine call."""
    batching = config.sequence_batching
    batching.max_sequence_idle_microseconds = _microseconds(sequence.idle_s)
    batching.oldest.max_candidate_sequences = sequence.most
    batching.oldest.preferred_batch_size.extend(package.batching.preferred_batch_sizes)
    batching.oldest.max_queue_delay_microseconds = _microseconds(package.batching.max_delay_ms / 1000)
    for state in sequence.state:
        batching.state.add(
            input_name=state.input, output_name=state.output, data_type=_data_type(state.dtype), dims=state.shape
        )


def _parameters(package: Package) -> dict[str, str]:
    """What Triton's configuration has no field for, by the names of model.toml."""
    found = {}
    if package.steps:
        found["steps"] = ", ".join(step.name for step in package.steps)
    if package.queue:
        found["queue"] = str(package.queue)
    if package.batching.pad:
        found["pad"] = ", ".join(package.batching.pad)
    for spec in _visible(package, (*package.inputs, *package.outputs)) if package.batching.max_batch else ():
        # Triton knows no other place for it than the front.
        if spec.batch_axis:
            found[f"batch_axis.{spec.name}"] = str(spec.batch_axis)
    return found


def statistics(replica: Replica) -> service_pb2.ModelStatistics:
    """Since the version came to this node. Requests that share an engine call count its whole time each, as in Triton;
    `batch_stats` counts it once."""
    tally = replica.tally
    statistics = service_pb2.ModelStatistics(
        name=replica.name,
        version=replica.version,
        last_inference=tally.last_inference_ms,
        inference_count=tally.inferences,
        execution_count=tally.executions,
        inference_stats=service_pb2.InferStatistics(
            success=_duration(tally.success),
            fail=_duration(tally.fail),
            queue=_duration(tally.queue),
            compute_input=_duration(tally.decode),
            compute_infer=_duration(tally.compute),
            compute_output=_duration(tally.encode),
            # There is no cache of answers.
            cache_hit=_duration(_NEVER),
            cache_miss=_duration(_NEVER),
        ),
        batch_stats=[_batch(rows, batch) for rows, batch in sorted(tally.batches.items())],
    )
    if replica.held_bytes:
        where = "GPU" if _on_gpu(replica) else "CPU"
        statistics.memory_usage.add(type=where, id=0, byte_size=replica.held_bytes)
    for number, response in enumerate(tally.responses):
        statistics.response_stats[str(number)].CopyFrom(_response(response))
    return statistics


def _batch(rows: int, batch: BatchTally) -> service_pb2.InferBatchStatistics:
    return service_pb2.InferBatchStatistics(
        batch_size=rows,
        compute_input=_duration(Total(batch.calls, batch.decode_ms)),
        compute_infer=_duration(Total(batch.calls, batch.compute_ms)),
        compute_output=_duration(Total(batch.calls, batch.encode_ms)),
    )


def _response(response: ResponseTally) -> service_pb2.InferResponseStatistics:
    """Answers that were given; a request that fails or is cancelled shows in `inference_stats`."""
    return service_pb2.InferResponseStatistics(
        compute_infer=_duration(Total(response.count, response.compute_ms)),
        compute_output=_duration(Total(response.count, response.encode_ms)),
        success=_duration(Total(response.count, response.compute_ms + response.encode_ms)),
        fail=_duration(_NEVER),
        empty_response=_duration(_NEVER),
        cancel=_duration(_NEVER),
    )


def index(replicas: Iterable[Replica], *, only_ready: bool) -> service_pb2.RepositoryIndexResponse:
    response = service_pb2.RepositoryIndexResponse()
    for replica in replicas:
        if replica.ready:
            # A cold model answers as well, if later.
            reason = "" if replica.active else "cold"
            response.models.add(name=replica.name, version=replica.version, state="READY", reason=reason)
        elif not only_ready:
            response.models.add(
                name=replica.name,
                version=replica.version,
                state="UNAVAILABLE",
                reason="unloaded" if replica.unloaded else replica.fault or "an engine call hangs",
            )
    return response


def _visible(package: Package, specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    states = package.sequence.state if package.sequence else ()
    kept = {state.input for state in states} | {state.output for state in states}
    return [spec for spec in specs if spec.name not in kept]


def _dims(package: Package, spec: TensorSpec) -> tuple[int, ...]:
    """Triton leaves the batch axis out of a model that batches; a tensor without rows has none to leave out."""
    if not package.batching.max_batch or spec.batch_axis < 0:
        return spec.shape
    return spec.shape[: spec.batch_axis] + spec.shape[spec.batch_axis + 1 :]


def _on_gpu(replica: Replica) -> bool:
    return any(not provider.startswith("CPU") for provider in replica.providers)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _data_type(datatype: str) -> int:
    return int(config_pb2.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"))


def _duration(total: Total) -> service_pb2.StatisticDuration:
    return service_pb2.StatisticDuration(count=total.count, ns=total.ns)
