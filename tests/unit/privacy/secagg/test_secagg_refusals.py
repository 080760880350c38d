"""What client and server refuse, and what the server cannot see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from fedloom.algorithms import ALGORITHMS, robust
from fedloom.errors import DataError, TrainingError, UsageError
from fedloom.privacy.secagg import (
    WHY_NOT,
    Client,
    Config,
    Server,
    Step,
    answer,
    field,
    identity,
    messages,
    plain_sum,
    why_not,
)
from fedloom.privacy.secagg.client import self_mask_key
from fedloom.privacy.secagg.primitives import add_mask

N, SIZE = 5, 6
PAIRS = [identity(np.random.default_rng(100 + i).bytes) for i in range(N)]
VECTORS = [np.full(SIZE, 10 + i, dtype=np.uint32) for i in range(N)]


def configuration(signed: bool = True, **changes) -> Config:
    keys = [public for _, public in PAIRS] if signed else []
    return replace(Config.of(b"s" * 16, 4, clients=N, size=SIZE, identities=keys), **changes)


class Table:
    """A server and its clients; ``go(step)`` plays all steps before it."""

    def __init__(self, config: Config, chance: int = 0) -> None:
        self.config, self.server = config, Server(config)
        draw = np.random.default_rng(chance).bytes
        private = [PAIRS[i][0] if config.identities else None for i in range(N)]
        self.clients = [Client(config, i, private[i], draw) for i in range(N)]
        self.inbox = dict.fromkeys(range(N), b"")

    def answer(self, i: int, data: bytes | None = None) -> bytes:
        step = self.server.step
        return answer(self.clients[i], step, self.inbox[i] if data is None else data, VECTORS[i])

    def go(self, step: Step, without=()) -> Table:
        while self.server.step < step:
            self.play(without)
        return self

    def play(self, without=()) -> None:
        for i in self.inbox:
            if not (i in without and self.server.step >= Step.MASK):
                self.server.receive(self.answer(i))
        self.inbox = self.server.advance()


def resealed(table: Table, message, **changes) -> bytes:
    """Change what the server sends, as a server that lies would."""
    context = table.server._circle.binding if not isinstance(message, messages.Roster) else table.config.digest
    return replace(message, **changes).sealed_by(None, context).to_bytes()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("step", list(Step))
def test_a_message_that_was_changed_is_refused_by_the_server(signed, step):
    table = Table(configuration(signed)).go(step)
    sent = table.answer(0)
    for place in {0, 5, 10, 28, 33, len(sent) // 2, len(sent) - 65, len(sent) - 1}:
        changed = sent[:place] + bytes([sent[place] ^ 1]) + sent[place + 1 :]
        with pytest.raises(DataError):
            table.server.receive(changed)
    table.server.receive(sent)  # what was refused changed nothing
    for i in range(1, N):
        table.server.receive(table.answer(i))
    table.inbox = table.server.advance()
    while table.server.step is not None:
        table.play()
    np.testing.assert_array_equal(table.server.finish(), plain_sum(VECTORS, 32))


@pytest.mark.parametrize("step", list(Step)[1:])
def test_a_message_that_was_changed_is_refused_by_the_client_and_ends_its_part(step):
    length = len(Table(configuration()).go(step).inbox[1])
    for place in (0, 12, 30, 40, length // 2, length - 1):
        table = Table(configuration()).go(step)
        good = table.inbox[1]
        with pytest.raises(DataError):
            table.answer(1, good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(DataError, match="has ended its part"):
            table.answer(1, good)


@pytest.mark.parametrize("step", list(Step))
def test_the_server_takes_one_message_of_each_client_in_its_step(step):
    table = Table(configuration()).go(step)
    sent = [table.answer(i) for i in range(N)]
    assert table.server.expected == frozenset(range(N))
    table.server.receive(sent[0])
    assert table.server.expected == frozenset(range(1, N))
    with pytest.raises(DataError, match="client 0: a second message in step"):
        table.server.receive(sent[0])
    for data in sent[1:]:
        table.server.receive(data)
    table.server.advance()
    with pytest.raises(DataError, match=r"expected the message|is over"):
        table.server.receive(sent[0])


def test_who_dropped_out_does_not_come_back_in_the_same_round():
    table = Table(configuration()).go(Step.AGREE, without={0})
    told = messages.Survivors.from_bytes(table.inbox[1])
    head = {"session": told.session, "round": told.round, "client": 0}
    late = messages.Agreed(**head, alive=told.alive, dropped=told.dropped)
    with pytest.raises(DataError, match="client 0: dropped out in an earlier step"):
        table.server.receive(late.sealed_by(PAIRS[0][0], table.server._circle.binding).to_bytes())


def test_a_client_answers_each_step_once():
    table = Table(configuration()).go(Step.SHARE)
    table.answer(0)
    with pytest.raises(DataError, match="client 0: was asked for step 'share', but is at step 'mask'"):
        table.answer(0)


@pytest.mark.parametrize("change", [{"round": 5}, {"session": b"t" * 16}])
def test_messages_of_another_round_are_refused(change):
    other, table = Table(configuration(**change)), Table(configuration())
    with pytest.raises(DataError, match="expected round 4 of this session"):
        table.server.receive(other.answer(0))
    other, table = Table(configuration(**change)).go(Step.SHARE), Table(configuration()).go(Step.SHARE)
    with pytest.raises(DataError, match="round"):
        table.answer(0, other.inbox[0])


def test_who_was_told_another_configuration_is_not_understood():
    table, other = Table(configuration()), Table(configuration(minimum=4))
    with pytest.raises(DataError, match="seal is wrong"):
        table.server.receive(other.answer(0))


def test_one_client_cannot_speak_for_another():
    table = Table(configuration())
    message = messages.Advertise.from_bytes(table.answer(0))
    forged = replace(message, client=1).sealed_by(PAIRS[0][0], table.config.digest)
    with pytest.raises(DataError, match="client 1: the seal is wrong"):
        table.server.receive(forged.to_bytes())
    with pytest.raises(UsageError, match="does not belong to the public one"):
        Client(table.config, 1, PAIRS[0][0])
    with pytest.raises(UsageError, match="has no private key"):
        Client(table.config, 1)
    with pytest.raises(UsageError, match="has no public key"):
        Client(configuration(signed=False), 1, PAIRS[1][0])


def roster_changes():
    def exchanged(entries):
        first, second = entries[0], entries[1]
        return ((first[0], second[1], *first[2:]), *entries[1:])

    return {
        "seal is wrong": lambda e: (*e[:2], (e[2][0], b"x" * 32, *e[2][2:]), *e[3:]),
        "not in the roster with its own keys": lambda e: e[1:],
        "same key twice": lambda e: (*e[:2], (e[2][0], e[3][1], *e[2][2:]), *e[3:]),
        "own keys": exchanged,
        "found client 9": lambda e: (*e, (9, b"y" * 32, b"z" * 32, bytes(64))),
    }


@pytest.mark.parametrize("text", roster_changes())
def test_a_roster_that_is_not_what_the_clients_sent_is_refused(text):
    table = Table(configuration()).go(Step.SHARE)
    roster = messages.Roster.from_bytes(table.inbox[0])
    with pytest.raises(DataError, match=text):
        table.answer(0, resealed(table, roster, entries=roster_changes()[text](roster.entries)))


def test_a_roster_of_too_few_is_refused():
    table = Table(configuration()).go(Step.SHARE)
    roster = messages.Roster.from_bytes(table.inbox[0])
    with pytest.raises(TrainingError, match="2 of 5 clients are left"):
        table.answer(0, resealed(table, roster, entries=roster.entries[:2]))


def test_shares_of_others_or_exchanged_ones_are_refused():
    table = Table(configuration()).go(Step.MASK)
    delivery = messages.Delivery.from_bytes(table.inbox[0])
    (a, first), (b, second), *rest = delivery.entries
    with pytest.raises(DataError, match="client 0: from client 1: an encrypted share was changed"):
        table.answer(0, resealed(table, delivery, entries=((a, second), (b, first), *rest)))
    with pytest.raises(DataError, match="share of client 1, which is no neighbour"):
        table.answer(1, resealed(table, delivery, client=1, entries=((1, first), (2, first))))
    table = Table(configuration()).go(Step.MASK)
    with pytest.raises(TrainingError, match="2 clients are left that hold a share of client 0"):
        table.answer(0, resealed(table, delivery, entries=delivery.entries[:1]))


@pytest.mark.parametrize(
    ("alive", "dropped", "text"),
    [
        ((0, 1, 2, 3), (3, 4), "client 3 is listed both alive and dead"),
        ((1, 2, 3, 4), (0,), "not among those in the sum"),
        ((0, 1, 2, 3, 4, 7), (), "client 7 is listed, but not in the roster"),
        ((0, 1, 2, 3), (), "not those whose shares it was sent"),
    ],
)
def test_sets_that_contradict_are_refused(alive, dropped, text):
    table = Table(configuration()).go(Step.AGREE)
    told = messages.Survivors.from_bytes(table.inbox[0])
    with pytest.raises(DataError, match=text):
        table.answer(0, resealed(table, told, alive=alive, dropped=dropped))


def test_too_few_in_the_sum_are_refused():
    table = Table(configuration()).go(Step.AGREE)
    told = messages.Survivors.from_bytes(table.inbox[0])
    with pytest.raises(TrainingError, match="2 of 5 clients are left after step 'mask'"):
        table.answer(0, resealed(table, told, alive=(0, 1), dropped=(2, 3, 4)))


def test_clients_that_were_told_different_sets_give_nothing_away():
    """The attack that the step 'agree' is for: half of the clients hear that client 4 is dead, the others do not."""
    table = Table(configuration()).go(Step.AGREE)
    told = messages.Survivors.from_bytes(table.inbox[0])
    lie = resealed(table, told, alive=(0, 1, 2, 3), dropped=(4,))
    agreed = {i: table.answer(i, lie if i < 2 else None) for i in range(N)}
    with pytest.raises(DataError, match="agreed to other sets"):
        table.server.receive(agreed[0])
    entries = tuple((i, messages.Agreed.from_bytes(data).seal) for i, data in agreed.items())
    head = {"session": table.config.session, "round": table.config.round, "client": told.client}
    for chosen in (entries, entries[:4]):
        for i in (0, 2):
            forged = messages.Agreement(**head, entries=chosen).sealed_by(None, table.server._circle.binding)
            with pytest.raises(DataError, match=r"seal is wrong|not in the sum|has ended"):
                table.clients[i].reveal(forged.to_bytes())


def test_too_few_signatures_are_refused():
    table = Table(configuration()).go(Step.REVEAL)
    agreement = messages.Agreement.from_bytes(table.inbox[0])
    with pytest.raises(TrainingError, match="2 of 5 clients are left after step 'agree'"):
        table.answer(0, resealed(table, agreement, entries=agreement.entries[:2]))


def test_one_kind_of_share_for_each_peer():
    table = Table(configuration()).go(Step.REVEAL, without={4})
    given = messages.Reveal.from_bytes(table.answer(0))
    assert [i for i, _ in given.seeds] == [0, 1, 2, 3]
    assert [i for i, _ in given.keys] == [4]
    client = table.clients[0]
    assert not client._held
    assert client._seed == client._mask_secret == client._own == b""
    with pytest.raises(DataError, match="has ended its part"):
        table.answer(0)


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        (np.zeros(SIZE, dtype=np.uint64), "type uint64"),
        (np.zeros(SIZE + 1, dtype=np.uint32), "shape"),
        (np.full(SIZE, 2**20, dtype=np.uint32), "more than 20 bits"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector, text):
    table = Table(configuration(bits=20)).go(Step.MASK)
    with pytest.raises(UsageError, match=f"client 0: .*{text}"):
        table.clients[0].mask(table.inbox[0], vector)


def test_wrong_shares_make_an_error_and_no_wrong_sum():
    for kind, without in (("seeds", ()), ("keys", (4,))):
        table = Table(configuration()).go(Step.REVEAL, without)
        for i in list(table.inbox):
            given = messages.Reveal.from_bytes(table.answer(i))
            if i == 0:
                rows = getattr(given, kind)
                rows = (*rows[:-1], (rows[-1][0], (12345).to_bytes(33, "little")))
                given = replace(given, **{kind: rows}).sealed_by(PAIRS[0][0], table.server._circle.binding)
            table.server.receive(given.to_bytes())
        table.server.advance()
        with pytest.raises(DataError, match=r"client [34]: the shares of its secret are wrong"):
            table.server.finish()
        with pytest.raises(UsageError, match="can be had once"):
            table.server.finish()


def test_the_server_asks_for_the_shares_it_needs_only():
    table = Table(configuration()).go(Step.REVEAL)
    given = messages.Reveal.from_bytes(table.answer(0))
    wrong = replace(given, seeds=given.seeds[:-1], keys=given.seeds[-1:])
    with pytest.raises(DataError, match="not those that were asked for"):
        table.server.receive(wrong.sealed_by(PAIRS[0][0], table.server._circle.binding).to_bytes())


def test_the_sum_is_had_after_the_last_step_and_once():
    table = Table(configuration()).go(Step.REVEAL)
    with pytest.raises(UsageError, match="after the last step"):
        table.server.finish()
    table.play()
    table.server.finish()
    with pytest.raises(UsageError, match="is over"):
        table.server.advance()


def test_masked_vectors_look_uniform_and_differ_from_round_to_round():
    config = Config.of(b"s" * 16, 4, clients=N, size=20_000, bits=24)
    seen = []
    for number in (4, 5):
        table = Table(replace(config, round=number)).go(Step.SHARE)
        table.play()
        for i in range(N):
            sent = table.clients[i].mask(table.inbox[i], np.full(20_000, i, dtype=np.uint32))
            seen.append(np.frombuffer(messages.Masked.from_bytes(sent).payload, dtype=np.uint8))
    for data in seen:
        assert chisquare(np.bincount(data, minlength=256)).pvalue > 1e-4
    pairs = [np.mean(a == b) for i, a in enumerate(seen) for b in seen[:i]]
    assert max(pairs) < 2 / 256  # two independent bytes are equal in 1 of 256 cases
    both = seen[0].astype(np.uint16) * 16 % 256 + seen[1] // 16
    assert chisquare(np.bincount(both, minlength=256)).pvalue > 1e-4


def test_with_one_share_less_the_mask_stays_on():
    table = Table(configuration()).go(Step.REVEAL)
    for i in range(N):
        table.server.receive(table.answer(i))
    server, threshold = table.server, table.config.threshold
    circle, shares = server._circle, dict(list(server._shares[0].items()))
    enough = {place: shares[place] for place in list(shares)[:threshold]}
    assert circle.commitment(0, field.combine(enough)) == server._commitments[0]
    enough.popitem()
    guess = sum(
        w * int.from_bytes(s, "little") for w, s in zip(field._weights(tuple(enough)), enough.values(), strict=True)
    )
    wrong = (guess % field.PRIME % 2**256).to_bytes(32, "little")
    assert circle.commitment(0, wrong) != server._commitments[0]
    total = server._total.copy()
    add_mask(total, self_mask_key(circle, 0, wrong), -1)
    server.advance()
    assert not np.array_equal(total, server.finish())


def test_what_needs_single_updates_is_named_with_a_reason():
    assert set(robust.NAMES) <= set(WHY_NOT)
    assert set(WHY_NOT) <= set(ALGORITHMS) | set(robust.NAMES)
    assert "sum" in why_not("median")
    assert why_not("fedavg") is None
