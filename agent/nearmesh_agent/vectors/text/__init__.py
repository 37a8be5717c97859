"""Texts: their words, their vectors by models that this node serves, and passages found by both."""
