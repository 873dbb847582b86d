"""What tests of several folders use."""

import os

import pytest
from odd_scans import good, model

__all__ = ["good", "model"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("uses what POSIX systems alone have")
