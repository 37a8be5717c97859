"""Requests to a node with training beside them, and without."""
