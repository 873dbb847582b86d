"""Numba's `njit` for the kernels, whose compiled code is kept on disk where that can be done."""

from collections.abc import Callable
from contextlib import suppress

from numba import njit
from numba.core.caching import FunctionCache


def jit(**options) -> Callable[[Callable], Callable]:
    """`njit(cache=True, **options)`, but where there is no place to keep code, no room, or a damaged file, a kernel is
    compiled anew in each process: the cache saves seconds, and nothing hangs on it."""
    def compiled(function: Callable) -> Callable:
        dispatcher = njit(**options)(function)
        with suppress(RuntimeError):  # a read-only installation of a user without a home
            dispatcher._cache = _Cache(function)
        return dispatcher

    return compiled


class _Cache(FunctionCache):
    def load_overload(self, signature, target_context):
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # whatever a damaged file makes of pickle
            with suppress(OSError):
                self.flush()  # its index is empty now, so that what is compiled can be kept
            return None

    def save_overload(self, signature, compiled):
        with suppress(Exception):
            super().save_overload(signature, compiled)
