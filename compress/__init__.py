"""Compression as pure functions on nested dicts of arrays; knows no model."""
