"""The little of CUDA's driver that running a plan takes, so that a node needs no package beyond the driver itself.

TensorRT's runtime libraries bring no way to move tensors; ONNX Runtime's would need its GPU build and all of CUDA's
libraries beside it, although a node with TensorRT alone can do without.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from nearmesh.errors import EngineFailure
from nearmesh_agent.engines.base import Array

_DRIVER = "libcuda.so.1"
# Of CUdevice_attribute.
_MAJOR, _MINOR = 75, 76
# A stream that does not wait for the default one: other users of the GPU in this process stay out of the way.
_NON_BLOCKING = 1


class Gpu:
    """The first GPU that this process may see. Thread-safe; a thread calls `enter` before anything else."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._context = ctypes.c_void_p()
        # The context that CUDA's runtime, and so TensorRT, uses as well. It lives as long as the process.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    @classmethod
    def first(cls) -> Gpu:
        """Raises EngineFailure where there is no driver or no GPU."""
        try:
            return cls(ctypes.CDLL(_DRIVER))
        except OSError as error:
            raise EngineFailure(f"there is no GPU: {error}") from None

    @property
    def architecture(self) -> str:
        """Such as "sm_90"."""
        return f"sm_{self._attribute(_MAJOR)}{self._attribute(_MINOR)}"

    def enter(self) -> None:
        """Makes the GPU this thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return stream.value or 0

    def wait(self, stream: int) -> None:
        """Blocks until all that was ordered on the stream is done; other threads run meanwhile."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def drop_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def allocate(self, size_bytes: int) -> int:
        """The address of so much memory, at least a byte."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size_bytes)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_in(self, address: int, array: Array, stream: int) -> None:
        """Orders the copy of a contiguous array; it must stay until the stream has been waited for."""
        if array.nbytes:
            source = ctypes.c_void_p(array.ctypes.data)
            size = ctypes.c_size_t(array.nbytes)
            self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream))

    def copy_out(self, shape: tuple[int, ...], dtype: np.dtype[Any], address: int, stream: int) -> Array:
        """A new array, which is filled once the stream has been waited for."""
        array = np.empty(shape, dtype)
        if array.nbytes:
            target = ctypes.c_void_p(array.ctypes.data)
            size = ctypes.c_size_t(array.nbytes)
            self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))
        return array

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status:
            raise EngineFailure(f"CUDA: {function} failed: {self._name(status)}")

    def _name(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._driver.cuGetErrorName(status, ctypes.byref(text))
        return text.value.decode() if text.value else f"error {status}"
