"""gRPC, if it is installed; it does not print what the errors of this package say already."""

from __future__ import annotations

import os
from typing import Any

from fedloom.errors import MissingDependency


def load() -> Any:
    """Import ``grpc``.

    Raises:
        MissingDependency: It is not installed.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read once, by the import
    try:
        import grpc
    except ImportError:
        raise MissingDependency.of("grpcio", "network", "a federation over the network") from None
    return grpc
