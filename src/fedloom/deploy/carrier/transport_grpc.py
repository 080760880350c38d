"""The seam over gRPC: TLS with a pinned authority, signed calls, chunks with checksums, uploads that are taken up again.

The methods are generic, their messages bytes of :mod:`fedloom.deploy.protocol.messages`: no code is generated, and
nothing is unpickled.

    Challenge   -> 32 bytes to sign
    Open        Open, signature -> Opened
    Ask         signed head, message -> length, chunks of the answer       register, next task, heartbeat, leave
    Offer       signed head -> how much of that upload has come
    Push        signed head, place; chunks, those of a large upload when the server says so -> Receipt
"""

from fedloom.deploy.carrier.grpc_calls import Audit
from fedloom.deploy.carrier.grpc_client import GrpcChannel, connect
from fedloom.deploy.carrier.grpc_server import Listener, listen

__all__ = ["Audit", "GrpcChannel", "Listener", "connect", "listen"]
