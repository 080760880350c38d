"""Places in a run, and the invitations for them: whoever goes before the run begins leaves both to others."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from fedloom.deploy.seam import Identity, Refused
from fedloom.deploy.serving import expulsion
from fedloom.deploy.serving.roster import Roster
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.locking import alone
from fedloom.errors import DataError, StorageError, UsageError

ANA, LEA, TOM, BEA = (bytes([n]) * 32 for n in (1, 2, 3, 4))


def test_an_invitation_that_is_given_back_can_be_used_once_more(tmp_path):
    admission = Admission(tmp_path / "a.json")
    token = admission.invite(uses=2)
    admission.admit(ANA, "ana", token)
    admission.admit(LEA, "lea", token)
    with pytest.raises(Refused, match="used already"):
        admission.admit(TOM, "tom", token)
    admission = Admission(tmp_path / "a.json")  # the server was started again
    admission.give_back(ANA)
    assert set(admission.members) == {"lea"}
    assert admission.admit(TOM, "ana", token) == "ana"  # the name is free again, too
    with pytest.raises(Refused, match="used already"):
        admission.admit(ANA, "tom", token)
    admission.give_back(ANA)  # she is not there any more
    with pytest.raises(Refused, match="used already"):
        admission.admit(ANA, "tom", token)


def test_who_was_sent_away_gives_nothing_back(tmp_path):
    admission = Admission(tmp_path / "a.json")
    token = admission.invite()
    admission.admit(ANA, "ana", token)
    admission.expel("ana")
    admission.give_back(ANA)
    assert admission.was_expelled(ANA)
    with pytest.raises(Refused, match="used already"):
        admission.admit(LEA, "lea", token)


def test_invitations_that_somebody_knows_who_was_sent_away_are_void(tmp_path):
    admission = Admission(tmp_path / "a.json")
    token = admission.invite(uses=3)
    admission.admit(ANA, "ana", token)
    admission.admit(LEA, "lea", token)
    admission.expel("ana")
    with pytest.raises(Refused, match="ask for a new one"):
        admission.admit(TOM, "tom", token)
    admission.give_back(LEA)  # her place is free, and that opens nothing
    with pytest.raises(Refused, match="ask for a new one"):
        admission.admit(TOM, "tom", token)
    assert admission.admit(TOM, "tom", admission.invite()) == "tom"
    assert admission.expelled == Admission(tmp_path / "a.json").expelled == ["ana"]
    newer = admission.invite()
    admission.expel("ana")  # once more: those who have the newer one need not care
    assert admission.admit(BEA, "bea", newer) == "bea"


def test_what_was_asked_for_is_done_at_once_or_when_the_server_starts_again(tmp_path):
    secrets, path, gone = tmp_path / "server", tmp_path / "server" / "admission.json", []
    with pytest.raises(DataError, match="no such file"):
        expulsion.ask(secrets, path, "ana")
    admission = Admission(path)
    for key, name in ((ANA, "ana"), (LEA, "lea")):
        admission.admit(key, name, admission.invite())
    with pytest.raises(UsageError, match=r"no client 'tom' \(known: ana, lea"):
        expulsion.ask(secrets, path, "tom")
    expulsion.ask(secrets, path, "ana")
    (secrets / expulsion.ASKED / ".fedloom-1.json").write_text('{"na')  # somebody's 'fedloom expel' was killed
    (secrets / expulsion.ASKED / "0.json").write_text("[]")
    with expulsion.heard(secrets, admission, lambda name, why: gone.append((name, why))):
        assert gone == [("ana", "it was sent away by the server")]
        expulsion.ask(secrets, path, "lea")
        ends = time.monotonic() + 30
        while len(gone) < 2 and time.monotonic() < ends:
            time.sleep(0.01)
    assert [name for name, _ in gone] == ["ana", "lea"]
    assert {path.name for path in (secrets / expulsion.ASKED).iterdir()} == {".fedloom-1.json", "0.json"}
    assert Admission(path).expelled == ["ana", "lea"]
    with expulsion.heard(secrets, Admission(path), lambda name, _: gone.append((name, "before"))):
        assert gone[2:] == [
            ("ana", "before"),
            ("lea", "before"),
        ]  # a server that was started again does not wait for them


def test_nothing_of_a_client_that_was_sent_away_counts_any_more(tmp_path):
    roster, who = Roster(tmp_path, 1), Identity("ana", ANA)
    ana = roster.admit(who, 10)
    assert roster.find(who) is ana
    roster.fix(begun=True)
    roster.expel(ana, "it was sent away")
    assert ana.left == "it was sent away"
    for call in (lambda: roster.find(who), lambda: roster.admit(who, 10)):
        with pytest.raises(Refused, match="any more: it was sent away"):
            call()


def test_a_silent_client_loses_its_place_until_the_list_is_fixed(tmp_path):
    roster = Roster(tmp_path, 1)
    ana = roster.admit(Identity("ana", ANA), 10)
    assert roster.drop(60.0) == []
    assert roster.drop(-1.0) == [ana]
    lea = roster.admit(Identity("lea", LEA), 10)
    assert Roster(tmp_path, 1).members() == [lea]
    lea.agreed = True
    assert roster.fix()
    assert roster.drop(-1.0) == []


def test_samples_of_unknown_classes_are_refused_and_the_run_goes_on(world):
    made = world(clients=1, rounds=1)
    own = made.part(0)
    strange = replace(own, class_names=(*own.class_names[:-1], "owl"))
    tom = made.start(made.client(None, "tom", strange), "tom")

    def then() -> None:
        tom.join(30)
        made.start(made.client(0), "c0")

    threading.Thread(target=then, daemon=True).start()
    made.serve()
    for thread in made.threads:
        thread.join(20)
    assert "class 'owl' is none of those in this run" in str(made.ends["tom"])
    assert made.ends["c0"] == "the run is over"


def test_a_folder_is_for_one_process_at_a_time(tmp_path):
    with alone(tmp_path / "a", "taken"):
        with pytest.raises(StorageError, match="taken"), alone(tmp_path / "a", "taken"):
            pass
        with alone(tmp_path / "b", "taken"):
            pass
    with alone(tmp_path / "a", "taken"):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="a file stands where a folder is expected"),
        alone(tmp_path / "file", "taken"),
    ):
        pass
