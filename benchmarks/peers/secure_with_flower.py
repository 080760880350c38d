"""What Flower's SecAgg+ takes for one client and for the server, by its own functions; prints a line of JSON.

One client goes through all four stages of ``secaggplus_mod`` with messages of real neighbours, whose keys and shares come
from its own functions, too. The server's work is timed piece by piece as ``SecAggPlusWorkflow.unmask_stage`` does it
(one masked vector added, one secret put together, one mask taken off), and multiplied by how often each is done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    get_parameters_shape,
    parameters_addition,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

MODULUS = 2**32
mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # the name is a function's, too


def timed(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def setup(n: int, threshold: int) -> ConfigRecord:
    return ConfigRecord(
        {
            Key.SAMPLE_NUMBER: n,
            Key.SHARE_NUMBER: n,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: 8.0,
            Key.TARGET_RANGE: 2**22,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: 1000.0,
        }
    )


def one_client(n: int, size: int, threshold: int) -> tuple[dict[str, float], list[bytes], Any]:
    """Take client 0 through the four stages."""
    states = [mod.SecAggPlusState() for _ in range(n)]
    for i, state in enumerate(states):
        state.nid = i
    spent, keys = {}, {}
    for i, state in enumerate(states):
        seconds, found = timed(lambda state=state: mod._setup(state, setup(n, threshold)))
        keys[i] = (found[Key.PUBLIC_KEY_1], found[Key.PUBLIC_KEY_2])
        if i == 0:
            spent["setup"] = seconds
    record = ConfigRecord({str(i): list(pair) for i, pair in keys.items()})
    spent["share keys"], _ = timed(lambda: mod._share_keys(states[0], record))
    ciphers = []
    shares = create_shares(b"s" * 32, threshold, n), create_shares(states[0].sk1, threshold, n)
    for i in range(1, n):
        key = generate_shared_key(bytes_to_private_key(states[i].sk2), bytes_to_public_key(keys[0][1]))
        ciphers.append(encrypt(key, share_keys_plaintext_concat(i, 0, shares[0][0], shares[1][0])))
    vector = ndarrays_to_parameters([np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)])
    delivery = ConfigRecord({Key.CIPHERTEXT_LIST: ciphers, Key.SOURCE_LIST: list(range(1, n))})
    spent["mask"], masked = timed(lambda: mod._collect_masked_vectors(states[0], delivery, 600, vector))
    ask = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(range(n)), Key.DEAD_NODE_ID_LIST: []})
    spent["unmask"], _ = timed(lambda: mod._unmask(states[0], ask))
    return spent, masked[Key.MASKED_PARAMETERS], states[0]


def pieces(masked: list[bytes], state: Any, n: int, threshold: int) -> dict[str, float]:
    """Time what the server does once per vector, secret and mask; medians of three."""
    vector = [bytes_to_ndarray(data) for data in masked]
    shapes = get_parameters_shape(vector)
    seeds, keys = create_shares(state.rd_seed, threshold, n), create_shares(state.sk1, threshold, n)
    calls = {
        "add": lambda: parameters_addition(vector, [bytes_to_ndarray(data) for data in masked]),
        "seed": lambda: combine_shares(seeds),
        "key": lambda: combine_shares(keys),
        "mask": lambda: parameters_subtraction(vector, pseudo_rand_gen(state.rd_seed, MODULUS, shapes)),
    }
    return {name: statistics.median(timed(call)[0] for _ in range(3)) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--dropped", type=int, nargs="+", required=True)
    given = parser.parse_args()
    n = given.clients
    client, masked, state = one_client(n, given.size, given.threshold)
    cost = pieces(masked, state, n, given.threshold)
    server = {}
    for dropped in given.dropped:
        alive = n - dropped
        masks = alive + dropped * (n - 1)  # unmask_stage expands the masks of a dropped client with all its neighbours
        server[dropped] = alive * (cost["add"] + cost["seed"]) + dropped * cost["key"] + masks * cost["mask"]
    up = sum(len(data) for data in masked)
    print(json.dumps({"version": version("flwr"), "client": client, "pieces": cost, "server": server, "bytes": up}))


if __name__ == "__main__":
    main()
