"""A server that is killed in the middle of a secure sum goes on at the same step, with the same bits."""

from __future__ import annotations

import threading

import pytest
import torch

from fedloom.deploy.sealing import engine, exchange, journal
from fedloom.deploy.sealing.transcript import CLOSED, Transcript
from fedloom.deploy.serving.host import host
from fedloom.privacy.secagg import Step
from fedloom.simulation.simulate import simulate

pytest.importorskip("cryptography")


class Killed(BaseException):
    """What a kill looks like from inside."""


def first_answer(self, wait, step):
    """Wait until the first client has answered a step, and be killed."""
    everybody = len(self._waiting)
    while len(self._waiting) == everybody:
        self._news.wait(5)
    raise Killed


def unwritten(self, close, step, gone):
    """Be killed while the end of a step is written."""
    self._file._file.write(b"FLSJ\x01\x03")
    self._file._file.flush()
    raise Killed


def written(self, close, step, gone):
    """Be killed when it has been written."""
    close(self, step, gone)
    raise Killed


WAYS = {"waiting": first_answer, "unwritten": unwritten, "written": written}
PLACES = {"waiting": (exchange.Exchange, "_wait"), "unwritten": (Transcript, "close"), "written": (Transcript, "close")}


@pytest.mark.parametrize(("number", "way"), [(1, "waiting"), (2, "waiting"), (1, "unwritten"), (2, "written")])
def test_a_server_that_is_killed_in_every_step_loses_no_round(secure, tools, tmp_path, monkeypatch, number, way):
    made = secure(rounds=2, privacy="skellam", clip=1.0, noise=0.5, noise_seed=3)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    kind, method = PLACES[way]
    left, real = list(Step), getattr(kind, method)

    def dying(self, step, *rest):
        begun = getattr(self, "begun", None)
        at = begun.config.round if begun else self.round
        if at == number and left and step is left[0]:
            left.pop(0)
            WAYS[way](self, real, step, *rest)
        return real(self, step, *rest)

    monkeypatch.setattr(kind, method, dying)
    made.all()
    for _ in Step:
        with pytest.raises(Killed):
            host(made.config, made.folder / "run", made.listen, say=made.said.append)
    here = made.serve()
    assert not left
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [(r.round, r.clients, r.failures) for r in here.records] == [(1, 3, ()), (2, 3, ())]
    assert len([text for text in made.said if "going on with a secure sum of 3 clients" in text]) == 5
    masked = {(name, u.round, u.encoded) for name, u in made.uploads if u.facts.get("step") == Step.MASK}
    assert len(masked) == 6  # sent again, and never masked again
    assert not list((made.folder / "run" / "secure").iterdir())


def test_a_server_that_is_killed_after_the_sum_makes_it_again(secure, tools, tmp_path, monkeypatch):
    made, killed = secure(rounds=2), []
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    gather = engine.Sealed.gather

    def dying(self, number, *rest):
        found = gather(self, number, *rest)
        if number == 2 and not killed:
            killed.append((found.bytes_up, found.bytes_down))
            raise Killed
        return found

    monkeypatch.setattr(engine.Sealed, "gather", dying)
    clients = made.all()
    with pytest.raises(Killed):
        host(made.config, made.folder / "run", made.listen)
    for client in clients:  # nobody is needed any more
        client._leg = None
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [(here.records[1].bytes_up, here.records[1].bytes_down - here.records[0].bytes_down)] == [
        (killed[0][0], 0),
    ]


def test_a_client_that_dies_while_the_server_is_away_is_a_drop_out(secure, tools, monkeypatch):
    made = secure(rounds=1, clients=4)
    away, real = threading.Event(), exchange.Exchange._wait

    def dying(self, step):
        if step is Step.MASK and not away.is_set():
            away.set()
            raise Killed
        return real(self, step)

    monkeypatch.setattr(exchange.Exchange, "_wait", dying)
    clients = made.all()

    def die(_, at):
        if at is Step.MASK:
            made.start(made.client(3), "again")
            raise tools.gone

    made.leg(clients[3], die)
    with pytest.raises(Killed):
        host(made.config, made.folder / "run", made.listen)
    (record,) = made.serve().records
    assert record.clients == 3
    assert [(f.client, f.kind) for f in record.failures] == [("client_3", "dropped")]


def test_a_server_that_has_lost_its_journal_gets_no_second_masked_update(secure, tools, monkeypatch):
    made, lost = secure(rounds=2), []
    real = Transcript.close

    def losing(self, step, gone):
        if step is Step.AGREE and not lost:
            lost.append(self._file._path)
            raise Killed
        return real(self, step, gone)

    monkeypatch.setattr(Transcript, "close", losing)
    made.all()
    with pytest.raises(Killed):
        host(made.config, made.folder / "run", made.listen)
    lost[0].unlink()
    here = made.serve()
    assert [r.clients for r in here.records] == [0, 3]
    assert any("two would show its update" in f.reason for f in here.records[0].failures)


def test_what_is_behind_the_last_whole_entry_is_cut_off(tmp_path):
    path = tmp_path / "a.journal"
    file = journal.Journal(path)
    for data in (b"one", b"two"):
        file.add(CLOSED, data)
    file.close()
    whole = path.read_bytes()
    for size in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:size])
        (entry,) = journal.read(path)
        again = journal.Journal(path, 1, entry.end)
        again.add(CLOSED, b"three", sync=True)
        again.close()
        assert [entry.data for entry in journal.read(path)] == [b"one", b"three"]
