"""Nearmesh: an edge-distributed inference mesh. This is the library that apps and tools install."""

__version__ = "0.1.0"
