"""Places in a run, and the invitations for them: whoever goes before the run begins leaves both to others."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from fedloom.deploy.seam import Identity, Refused
from fedloom.deploy.serving.roster import Roster
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.locking import alone
from fedloom.errors import StorageError

ANA, LEA, TOM = (bytes([n]) * 32 for n in (1, 2, 3))


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
