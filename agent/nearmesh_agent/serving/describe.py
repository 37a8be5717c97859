"""What the node says about its models in the words of the Open Inference Protocol and Triton's extensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tritonclient.grpc import model_config_pb2 as config_pb2
from tritonclient.grpc import service_pb2

from nearmesh import __version__
from nearmesh.package import Package, TensorSpec
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.tally import Total

# Those of Triton's extensions that hold here, by Triton's names.
_EXTENSIONS = ("model_configuration", "model_repository", "parameters", "sequence", "statistics")


def server() -> service_pb2.ServerMetadataResponse:
    return service_pb2.ServerMetadataResponse(name="nearmesh", version=__version__, extensions=_EXTENSIONS)


def metadata(replica: Replica, versions: Iterable[str]) -> service_pb2.ModelMetadataResponse:
    """Inputs and outputs as a client sees them: what a sequence keeps on the node is not among them."""
    package = replica.package
    response = service_pb2.ModelMetadataResponse(
        name=package.name, versions=sorted(versions), platform=replica.engine.name
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
        name=package.name, platform=replica.engine.name, max_batch_size=package.batching.max_batch
    )
    for spec in _visible(package, package.inputs):
        config.input.add(
            name=spec.name, data_type=_data_type(spec.dtype), dims=_dims(package, spec), optional=spec.optional
        )
    for spec in _visible(package, package.outputs):
        config.output.add(name=spec.name, data_type=_data_type(spec.dtype), dims=_dims(package, spec))
    on_gpu = any(not provider.startswith("CPU") for provider in replica.engine.providers)
    group = config_pb2.ModelInstanceGroup
    config.instance_group.add(count=replica.instances, kind=group.KIND_GPU if on_gpu else group.KIND_CPU)
    _describe_sequence(package, config)
    return service_pb2.ModelConfigResponse(config=config)


def _describe_sequence(package: Package, config: config_pb2.ModelConfig) -> None:
    if package.sequence is None:
        return
    config.sequence_batching.max_sequence_idle_microseconds = round(package.sequence.idle_s * 1_000_000)
    for state in package.sequence.state:
        config.sequence_batching.state.add(
            input_name=state.input, output_name=state.output, data_type=_data_type(state.dtype), dims=state.shape
        )


def statistics(replica: Replica) -> service_pb2.ModelStatistics:
    tally = replica.tally
    return service_pb2.ModelStatistics(
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
        ),
    )


def index(replicas: Iterable[Replica], *, only_ready: bool) -> service_pb2.RepositoryIndexResponse:
    response = service_pb2.RepositoryIndexResponse()
    for replica in replicas:
        if replica.ready:
            response.models.add(name=replica.name, version=replica.version, state="READY")
        elif not only_ready:
            response.models.add(
                name=replica.name, version=replica.version, state="UNAVAILABLE", reason="an engine call hangs"
            )
    return response


def _visible(package: Package, specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    states = package.sequence.state if package.sequence else ()
    kept = {state.input for state in states} | {state.output for state in states}
    return [spec for spec in specs if spec.name not in kept]


def _dims(package: Package, spec: TensorSpec) -> Sequence[int]:
    """Triton leaves the batch axis out of a model that batches."""
    return spec.shape[1:] if package.batching.max_batch else spec.shape


def _data_type(datatype: str) -> int:
    return int(config_pb2.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"))


def _duration(total: Total) -> service_pb2.StatisticDuration:
    return service_pb2.StatisticDuration(count=total.count, ns=total.ns)
