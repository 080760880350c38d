"""Secure aggregation: the server learns the sum of the clients' vectors and nothing else about them.

Every two neighbours share a mask that one adds and the other subtracts, so all of them cancel in the sum; a mask of a
client's own keeps it covered should the server call it dead and ask for its shared masks. What is needed to take the
masks of clients off that dropped out is shared among their neighbours (Shamir), so that a threshold of them can
help, and fewer learn nothing.

=============  ===============================  ====================================
step           client to server                 server to clients, before it
=============  ===============================  ====================================
1 advertise    two public keys                  (the configuration)
2 share        encrypted shares                 the roster: everybody's keys
3 mask         the vector under its masks       the neighbours' shares
4 agree        seal of the survivors            who is in the sum, who dropped out
5 reveal       one share per neighbour          everybody's seals
=============  ===============================  ====================================

**What is kept from whom.** The server, even with up to the assumed share of clients, learns the sum over at least
``minimum`` clients. With identities (signed messages) this holds against a server that lies: clients refuse rosters and
sets that are not the same for all. Without identities it holds for a server that passes messages on as they are. The sum
itself may tell something; that is what noise is for. A client that sends wrong shares can make a round fail, not make it
wrong; one that sends a wrong vector can make the sum wrong: secure aggregation hides it.

Sources: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning" (figure 4, with the
consistency check for active adversaries); Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic
overhead" (the sparse graph). Differences: the order on the ring comes from the keys of all, and all clients see all
signatures (a few hundred bytes per client), where Bell et al. have sets that grow with log n only; a hash of each seed
lets the server notice wrong shares.
"""

from fedloom.privacy.secagg.client import Client
from fedloom.privacy.secagg.conflicts import CODEC, WHY_NOT, why_not
from fedloom.privacy.secagg.fixed_point import FixedPoint, Mean, plain_sum
from fedloom.privacy.secagg.graph import FAILURE, Plan, plan
from fedloom.privacy.secagg.primitives import identity
from fedloom.privacy.secagg.server import Server
from fedloom.privacy.secagg.settings import Config, Step
from fedloom.privacy.secagg.simulate import Outcome, answer, simulate

__all__ = [
    "CODEC",
    "FAILURE",
    "WHY_NOT",
    "Client",
    "Config",
    "FixedPoint",
    "Mean",
    "Outcome",
    "Plan",
    "Server",
    "Step",
    "answer",
    "identity",
    "plain_sum",
    "plan",
    "simulate",
    "why_not",
]
