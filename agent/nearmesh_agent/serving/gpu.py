"""What the node's GPUs say of themselves, through NVIDIA's management library (NVML)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

# Of NVML's module and a device.
_Read = Callable[[Any, Any], float]

_FIGURES: tuple[tuple[str, str, _Read], ...] = (
    (
        "utilization_ratio",
        "The share of time in which a kernel ran, 0 to 1.",
        lambda nvml, device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
    ),
    (
        "memory_used_bytes",
        "Memory in use, by all processes.",
        lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).used,
    ),
    ("memory_total_bytes", "Memory there is.", lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).total),
    (
        "temperature_celsius",
        "Temperature of the chip.",
        lambda nvml, device: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
    ),
    # NVML counts milliwatts.
    ("power_watts", "Power drawn.", lambda nvml, device: nvml.nvmlDeviceGetPowerUsage(device) / 1000),
)


def find_nvml() -> Any:
    """NVML's Python module, begun; None where the package, the driver or the device is missing."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.info("no figures of GPUs: %s", error)
        return None
    return nvml


class GpuFigures(Collector):
    """Each device's figures, as far as it gives them: a slice of a GPU, for one, knows no utilization of its own."""

    def __init__(self, find: Callable[[], Any] = find_nvml) -> None:
        self._nvml = find()

    def collect(self) -> Iterator[Metric]:
        devices = self._devices()
        for name, help_text, read in _FIGURES if devices else ():
            family = GaugeMetricFamily(f"nearmesh_gpu_{name}", help_text, labels=("gpu", "uuid"))
            for number, (uuid, device) in enumerate(devices):
                try:
                    family.add_metric([str(number), uuid], read(self._nvml, device))
                except self._nvml.NVMLError as error:
                    log.debug("gpu=%s does not say its %s: %s", number, name, error)
            yield family

    def _devices(self) -> list[tuple[str, Any]]:
        """With their UUIDs, which stay theirs when devices are numbered anew."""
        if self._nvml is None:
            return []
        try:
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(at) for at in range(self._nvml.nvmlDeviceGetCount())]
            return [(self._nvml.nvmlDeviceGetUUID(handle), handle) for handle in handles]
        except self._nvml.NVMLError as error:
            # The driver went away under the process; requests that need it will say so themselves.
            log.warning("the GPUs do not answer: %s", error)
            return []
