"""A package from an ONNX file: what can be found out is written down, what cannot is left to be filled in."""

from nearmesh.packaging.init.folder import Made, init

__all__ = ["Made", "init"]
