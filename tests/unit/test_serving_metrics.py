"""What Prometheus reads of the replicas and of the GPUs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from nearmesh_agent.serving.gpu import GpuFigures, find_nvml
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nearmesh.v1 import node_pb2 as pb
from tests.gated_engine import Gate
from tests.tiny_models import package, spec


def replica_of(name="doubler", version="1", digest=None):
    described = package(name, [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], version=version, memory_bytes=1000)
    return Replica(described, digest or f"sha256:{name}-{version}", make=Gate)


def count(replica, *, queue_ms=2.0, compute_ms=8.0, rows=1):
    replica.tally.answered(
        Answer({}, queue_ms, compute_ms, rows, True), rows=rows, decode_ms=0.0, encode_ms=0.0, now_ms=1
    )


def watched(*replicas):
    table = ReplicaTable()
    for replica in replicas:
        table.put(replica)
    return table, ServingMetrics(table)


def value_of(metrics, name, model="doubler", version="1", **labels):
    labels = {"model": model, "version": version, **labels}
    return metrics.registry.get_sample_value(f"nearmesh_{name}", labels)


async def test_requests_by_how_they_ended():
    replica = replica_of()
    _, metrics = watched(replica)
    count(replica)
    count(replica)
    for outcome in ("OVERLOADED", "INVALID_INPUT", "CANCELLED"):
        replica.tally.failed(outcome, 1.0)
    ended = {
        status: value_of(metrics, "requests_total", status=status)
        for status in ("OK", "OVERLOADED", "INVALID_INPUT", "CANCELLED")
    }
    assert ended == {"OK": 2, "OVERLOADED": 1, "INVALID_INPUT": 1, "CANCELLED": 1}
    assert value_of(metrics, "rejected_total", reason="OVERLOADED") == 1
    assert value_of(metrics, "rejected_total", reason="INVALID_INPUT") is None
    assert value_of(metrics, "rejected_total", reason="OK") is None


async def test_callers_cannot_make_up_labels():
    _, metrics = watched(replica_of("unknown"))
    metrics.unknown("NOT_FOUND")
    metrics.unknown("NOT_FOUND")
    metrics.unknown("NOT_READY")
    assert value_of(metrics, "requests_total", "unknown", "", status="NOT_FOUND") == 2
    assert value_of(metrics, "rejected_total", "unknown", "", reason="NOT_READY") == 1
    # A model of that very name keeps its own series.
    assert value_of(metrics, "requests_total", "unknown", "1", status="NOT_FOUND") is None


async def test_histograms_count_up_to_each_bound_in_seconds():
    replica = replica_of()
    _, metrics = watched(replica)
    count(replica, queue_ms=0.2, compute_ms=8.0, rows=4)
    count(replica, queue_ms=30.0, compute_ms=8.0, rows=3)
    assert [value_of(metrics, "queue_seconds_bucket", le=le) for le in ("0.0001", "0.00025", "0.025", "0.05")] == [
        0,
        1,
        1,
        2,
    ]
    assert value_of(metrics, "queue_seconds_bucket", le="+Inf") == value_of(metrics, "queue_seconds_count") == 2
    assert value_of(metrics, "queue_seconds_sum") == pytest.approx(0.0302)
    assert value_of(metrics, "compute_seconds_bucket", le="0.01") == 2
    assert value_of(metrics, "service_seconds_sum") == pytest.approx(0.0462)
    assert value_of(metrics, "batch_rows_bucket", le="2.0") == 0
    assert value_of(metrics, "batch_rows_sum") == 7


async def test_what_a_replica_is_at_the_moment():
    replica = replica_of()
    _, metrics = watched(replica)
    assert (value_of(metrics, "resident"), value_of(metrics, "memory_bytes")) == (0, 0)
    await replica.activate()
    replica.tally.evictions = 3
    assert (value_of(metrics, "resident"), value_of(metrics, "memory_bytes")) == (1, 1000)
    assert (value_of(metrics, "loads_total"), value_of(metrics, "evictions_total")) == (1, 3)
    assert value_of(metrics, "load_seconds") == replica.load_s > 0
    assert (value_of(metrics, "in_flight"), value_of(metrics, "waiting"), value_of(metrics, "ready")) == (0, 0, 1)
    replica.fault = "three calls failed"
    assert value_of(metrics, "ready") == 0
    await replica.close()


async def test_a_version_keeps_its_counts_when_another_takes_over():
    old, new = replica_of(version="1"), replica_of(version="2")
    table, metrics = watched(old)
    count(old)
    table.put(new)
    count(new)
    count(old)
    assert value_of(metrics, "requests_total", version="1", status="OK") == 2
    assert value_of(metrics, "requests_total", version="2", status="OK") == 1
    table.remove(old.digest)
    assert value_of(metrics, "requests_total", version="1", status="OK") is None
    assert value_of(metrics, "requests_total", version="2", status="OK") == 1


async def test_a_version_published_anew_is_one_series():
    """Two of a kind in one answer would make Prometheus refuse all of it."""
    old, new = replica_of(digest="sha256:1"), replica_of(digest="sha256:2")
    _, metrics = watched(old, new)
    count(old)
    count(old)
    count(new)
    text = generate_latest(metrics.registry).decode()
    assert (
        text.count('nearmesh_requests_total{model="doubler",status="OK",version="1"}')
        + text.count('nearmesh_requests_total{model="doubler",version="1",status="OK"}')
        == 1
    )
    assert value_of(metrics, "requests_total", status="OK") == 1


async def test_the_page_is_one_that_prometheus_reads():
    replica = replica_of()
    _, metrics = watched(replica)
    count(replica)
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    assert families["nearmesh_requests"].type == "counter"
    assert families["nearmesh_compute_seconds"].type == "histogram"
    assert families["process_resident_memory_bytes"].samples[0].value > 0
    assert not [name for name in families if "gpu" in name]


class FakeNvml:
    """Two devices, of which the second one is a slice that does not tell all."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """Not supported, or lost."""

    def __init__(self, *, lost=False):
        self.lost = lost
        self.begun = 0

    def nvmlInit(self):
        if self.lost:
            raise self.NVMLError("driver not loaded")
        self.begun += 1

    def nvmlDeviceGetCount(self):
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, device):
        return f"GPU-{device}"

    def nvmlDeviceGetUtilizationRates(self, device):
        if device == 1:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=35, memory=10)

    def nvmlDeviceGetMemoryInfo(self, device):
        return SimpleNamespace(used=2**30 * (device + 1), total=2**34, free=0)

    def nvmlDeviceGetTemperature(self, device, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 60 + device

    def nvmlDeviceGetPowerUsage(self, device):
        return 70_500


def gpu_value(figures, name, gpu):
    registry = CollectorRegistry()
    registry.register(figures)
    return registry.get_sample_value(f"nearmesh_gpu_{name}", {"gpu": gpu, "uuid": f"GPU-{gpu}"})


def test_figures_of_gpus(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    figures = GpuFigures()
    assert nvml.begun == 1
    assert gpu_value(figures, "utilization_ratio", "0") == 0.35
    assert gpu_value(figures, "memory_used_bytes", "0") == 2**30
    assert gpu_value(figures, "memory_total_bytes", "1") == 2**34
    assert gpu_value(figures, "temperature_celsius", "1") == 61
    assert gpu_value(figures, "power_watts", "0") == 70.5


def test_a_gpu_that_does_not_tell_all_tells_the_rest():
    figures = GpuFigures(FakeNvml)
    assert gpu_value(figures, "utilization_ratio", "1") is None
    assert gpu_value(figures, "memory_used_bytes", "1") == 2**31


def test_gpus_stand_on_the_same_page():
    metrics = ServingMetrics((), gpus=GpuFigures(FakeNvml))
    assert metrics.registry.get_sample_value("nearmesh_gpu_power_watts", {"gpu": "0", "uuid": "GPU-0"}) == 70.5


@pytest.mark.parametrize("module", [None, FakeNvml(lost=True)], ids=["no package", "no driver"])
def test_without_nvml_there_are_no_figures(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert find_nvml() is None
    assert list(GpuFigures().collect()) == []


def test_a_driver_that_goes_away_leaves_the_page_standing(caplog):
    nvml = FakeNvml()
    figures = GpuFigures(lambda: nvml)
    nvml.lost = True
    assert list(figures.collect()) == []
    assert "GPU is lost" in caplog.text


async def test_a_trial_is_told_from_the_standing_version():
    old, new = replica_of(version="1"), replica_of(version="2")
    table, metrics = watched(old)
    table.try_out(new, pb.Trial(share=0.5))
    new.tally.compared, new.tally.agreed = 3, 2
    assert [value_of(metrics, "on_trial", version=version) for version in "12"] == [0, 1]
    assert [value_of(metrics, name, version="2") for name in ("compared_total", "agreed_total")] == [3, 2]
    table.put(new)
    assert [value_of(metrics, "on_trial", version=version) for version in "12"] == [0, 0]
