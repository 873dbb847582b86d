"""Fixtures that tests of several folders use."""

from odd_scans import good, model

__all__ = ["good", "model"]
