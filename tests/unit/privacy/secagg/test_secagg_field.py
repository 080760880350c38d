"""Shamir's sharing, the packing of bits, the mask."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.errors import DataError
from fedloom.privacy.secagg import field, packing, primitives

CONTEXT = bytes(32)


def drawn(seed: int):
    return np.random.default_rng(seed).bytes


def is_prime(n: int) -> bool:
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    chance = random.Random(1)
    for _ in range(30):
        x = pow(chance.randrange(2, n - 1), odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_prime_is_the_first_above_all_secrets():
    assert [c for c in range(1, 298) if is_prime(2**256 + c)] == [field.PRIME - 2**256]


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret_back(secret, threshold, more, chance):
    places = chance.sample(range(1, 200), threshold + more)
    shares = dict(zip(places, field.split(secret, threshold, places, chance.randbytes), strict=True))
    used = chance.sample(places, threshold)
    assert field.combine({place: shares[place] for place in used}) == secret
    assert all(field.valid(share) for share in shares.values())


def test_one_share_less_fits_every_secret():
    """For any other secret there is a last share with which the same shares give it: they say nothing about it."""
    shares = dict(enumerate(field.split(b"\x07" * 32, 3, [1, 2, 3], drawn(0)), 1))
    lagrange = [3, -3, 1]  # places 1, 2, 3 at 0
    for other in (0, 1, 2**255):
        known = sum(w * int.from_bytes(shares[i], "little") for i, w in ((1, lagrange[0]), (2, lagrange[1])))
        last = ((other - known) % field.PRIME).to_bytes(33, "little")
        assert field.combine({1: shares[1], 2: shares[2], 3: last}) == other.to_bytes(32, "little")


def test_shares_that_do_not_belong_together_are_noticed_where_they_can_be():
    with pytest.raises(DataError, match="wrong one"):
        field.combine({1: (2**256).to_bytes(33, "little")})
    assert not field.valid((field.PRIME).to_bytes(33, "little"))
    assert not field.valid(bytes(32))


@settings(deadline=None)
@given(st.integers(2, 64), st.integers(1, 40), st.integers(0, 2**32))
def test_unpack_undoes_pack(bits, size, seed):
    values = (
        np.random.default_rng(seed).integers(0, 2**bits, size, dtype=np.uint64, endpoint=False) if bits < 64 else None
    )
    if values is None:
        values = np.frombuffer(drawn(seed)(8 * size), dtype=np.uint64)
    values = values.astype(packing.dtype(bits))
    data = packing.pack(values, bits)
    assert len(data) == -(-size * bits // 8)
    found = packing.unpack(data, size, bits)
    assert found.dtype == packing.dtype(bits)
    np.testing.assert_array_equal(found, values)


def test_packed_bits_by_hand():
    assert packing.pack(np.array([0b101, 0b011, 0b111], dtype=np.uint32), 3) == bytes([0b11011101, 0b1])
    assert packing.pack(np.array([1, 2**31], dtype=np.uint32), 32).hex() == "0100000000000080"
    with pytest.raises(DataError, match="3 numbers of 3 bits need 2 bytes, found 1"):
        packing.unpack(b"\0", 3, 3)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_a_mask_is_the_key_stream_and_goes_away_again(kind):
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key, size = b"k" * 32, 200_001  # more than one part of the cache's size
    start = np.arange(size, dtype=kind)
    masked = start.copy()
    primitives.add_mask(masked, key, 1)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(masked.nbytes))
    np.testing.assert_array_equal(masked - start, np.frombuffer(stream, dtype=kind))
    primitives.add_mask(masked, key, -1)
    np.testing.assert_array_equal(masked, start)


def test_two_clients_agree_on_a_key_for_one_purpose_only():
    a, b = drawn(1)(32), drawn(2)(32)
    keys = primitives.public_of(a), primitives.public_of(b)
    ours = primitives.agree(a, keys[1], CONTEXT, "pair mask", 0, 1)
    assert ours == primitives.agree(b, keys[0], CONTEXT, "pair mask", 0, 1)
    others = [
        primitives.agree(a, keys[1], CONTEXT, "share", 0, 1),
        primitives.agree(a, keys[1], CONTEXT, "pair mask", 1, 0),
        primitives.agree(a, keys[1], b"x" * 32, "pair mask", 0, 1),
    ]
    assert len({ours, *others}) == 4
    with pytest.raises(DataError, match="small order"):
        primitives.agree(a, bytes(32), CONTEXT, "share")


def test_shares_are_encrypted_for_one_reader():
    key, plain = b"k" * 32, b"secret"
    cipher = primitives.encrypt(key, plain, CONTEXT)
    assert primitives.decrypt(key, cipher, CONTEXT) == plain
    for wrong in ((b"l" * 32, cipher, CONTEXT), (key, cipher[:-1] + b"\0", CONTEXT), (key, cipher, b"y" * 32)):
        with pytest.raises(DataError, match="changed on the way"):
            primitives.decrypt(*wrong)


def test_a_seal_is_for_one_content_context_and_owner():
    private, public = primitives.identity(drawn(3))
    other = primitives.identity(drawn(4))[1]
    seal = primitives.seal(private, CONTEXT, b"data")
    assert primitives.sealed(public, CONTEXT, b"data", seal)
    assert not primitives.sealed(public, CONTEXT, b"Data", seal)
    assert not primitives.sealed(public, b"x" * 32, b"data", seal)
    assert not primitives.sealed(other, CONTEXT, b"data", seal)
    assert not primitives.sealed(None, CONTEXT, b"data", seal)
    assert primitives.sealed(None, CONTEXT, b"data", primitives.seal(None, CONTEXT, b"data"))
