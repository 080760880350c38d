"""The protections that the gallery puts between an update and the attacker: one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protection:
    """What happens to an update before anybody else sees it.

    Attributes:
        name: A word for files and tables.
        title: What it is, for people.
        clip: Whether the update is cut to half of its own length: a bound that bites.
        noise: The standard deviation of the noise on what is seen, in multiples of the clipping bound; 0 for none.
        clients: How many clients' updates are added up before anybody sees them.
        codec: How the update is compressed (:func:`fedloom.compress.parse`); empty for not at all.
    """

    name: str
    title: str
    clip: bool = False
    noise: float = 0.0
    clients: int = 1
    codec: str = ""


PROTECTIONS = (
    Protection("plain", "No protection"),
    Protection("clipped", "Clipping only", clip=True),
    Protection("top-k", "Compression: the largest 1 %", codec="topk:0.01"),
    Protection("noise-0.001", "Clipping, noise 0.001", clip=True, noise=0.001),
    Protection("noise-0.01", "Clipping, noise 0.01", clip=True, noise=0.01),
    Protection("noise-1", "Clipping, noise 1", clip=True, noise=1.0),
    Protection("sum-of-10", "Secure aggregation, 10 clients", clients=10),
    Protection("sum-of-100", "Secure aggregation, 100 clients", clients=100),
    Protection("sum-of-10-noise-1", "Secure aggregation, 10 clients, noise 1", clip=True, noise=1.0, clients=10),
)
