"""Distributed anomaly detection for archives of steel strip images, on Ray."""

__version__ = "0.1.0"
