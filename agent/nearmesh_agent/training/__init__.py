"""Federated rounds at a site: its data, the recipes that train on them, and the SuperNode beside serving."""
