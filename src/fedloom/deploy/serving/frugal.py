"""Frugal: a server with many threads gives memory back that it needs no longer."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Of glibc's ``mallopt`` (its malloc.h)."""

LARGE = 1 << 17


def frugal() -> bool:
    """Let all threads of this process share one arena, and large pieces go back to the system at once, where glibc has it.

    glibc otherwise keeps an arena per thread with what was freed in it: with 25 million numbers and 8 clients that was most
    of a model's size more.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((ARENA_MAX, 1), (MMAP_THRESHOLD, LARGE), (TRIM_THRESHOLD, LARGE))
    return all(mallopt(what, value) == 1 for what, value in wanted)
