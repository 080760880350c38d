"""Needs: the packages of ``fedloom[dashboard]``."""

from __future__ import annotations

from importlib.util import find_spec

from fedloom.errors import MissingDependency

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def check() -> None:
    """Make sure that all are there.

    Raises:
        MissingDependency: One is not; the line says how to install it.
    """
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise MissingDependency.of(package, "dashboard", "the dashboard")
