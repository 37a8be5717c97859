"""Pipelines: graphs and functions of a package, one after the other, as one engine."""
