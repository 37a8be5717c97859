"""Federated runs on data that are split by nature: six speakers over three sites, and four hospitals.

What the sites have together is never in one place, but for the model that it is all held against.
"""
