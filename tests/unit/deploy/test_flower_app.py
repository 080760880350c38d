"""Letters in Flower's records, the generated app, and the commands with --engine flower."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fedloom.cli.app import app as program
from fedloom.config import Config
from fedloom.deploy.flower import consent, launch
from fedloom.deploy.flower.consent import Node
from fedloom.deploy.serving.host import Terms, served
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import DataError, NetworkError, UsageError

flower = pytest.importorskip("flwr.app")

from flwr.supercore.task_identity import TaskIdentity  # noqa: E402 - Flower's processes know who they are

from fedloom.deploy.flower import app  # noqa: E402
from fedloom.deploy.flower.letters import HELLO, QUESTIONS, TASK, Letter  # noqa: E402

KEYS = Keys.make()
PARTS = st.dictionaries(st.sampled_from(["task", "welcome", "upload", "digest"]), st.binary(max_size=200))


@given(st.sampled_from(QUESTIONS), st.text(max_size=40), st.binary(min_size=32, max_size=32), PARTS, PARTS)
def test_letters_arrive_as_they_were_sent_and_answers_belong_to_their_question(kind, run, challenge, asked, said):
    question = Letter(kind, run, challenge, asked)
    arrived = Letter.read(question.records())
    assert arrived == question
    answer = Letter.read(arrived.answered(KEYS, said).records())
    assert answer.parts == said
    assert answer.answers(replace(question, parts={}))
    assert not answer.answers(replace(question, challenge=bytes([challenge[0] ^ 1]) + challenge[1:]))
    assert not answer.answers(replace(question, run=run + "x"))
    assert not replace(answer, parts={**said, "more": b""}).answers(question)
    assert not replace(answer, final=True).answers(question)
    assert not replace(answer, reason="no").answers(question)
    assert not replace(answer, key=Keys.make().public).answers(question)


def test_a_signature_is_of_its_parts_and_not_of_their_bytes_in_a_row():
    question = Letter(TASK, "run", bytes(32))
    answer = question.answered(KEYS, {"a": b"bc", "d": b""})
    assert not replace(answer, parts={"a": b"b", "d": b"c"}).answers(question)
    assert not replace(answer, parts={"ab": b"c", "d": b""}).answers(question)


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"fedloom": {"kind": "task"}},
        {"body": {}},
        {"fedloom": {"kind": 1, "run": "", "challenge": b""}, "body": {}},
        {"fedloom": {"kind": "task", "run": "", "challenge": b"", "other": "x"}, "body": {}},
        {"fedloom": {"kind": "task", "run": "", "challenge": "text"}, "body": {}},
    ],
)
def test_other_records_are_refused(records):
    made = flower.RecordDict(
        {
            name: flower.ConfigRecord(values) if name == "fedloom" else flower.ArrayRecord(values)
            for name, values in records.items()
        }
    )
    with pytest.raises(DataError, match="none of fedloom's"):
        Letter.read(made)


def test_the_app_has_no_dependency_and_flower_builds_it(tmp_path):
    config = Config.of(data="digits", clients=3, rounds=2, model="2nn")
    terms = Terms(Patience(quorum=2), test="none")
    folder = launch.write_app(tmp_path / "app", app.settings(config, tmp_path / 'a "quoted"\nfolder', terms))
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    told = project["tool"]["flwr"]["app"]["config"]
    assert Config.of_tables(tomllib.loads(told[app.CONFIG])) == config
    assert Path(told[app.OUT]).name == 'a "quoted"\nfolder'
    assert json.loads(told[app.TERMS])["patience"]["quorum"] == 2
    for path in (folder / launch.PACKAGE).glob("*.py"):
        imported = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert imported in ([], ["fedloom.deploy.flower.app"])
    made = subprocess.run(
        [launch.tool(), "build", "--app", str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert len(list(tmp_path.glob("*.fab"))) == 1


@pytest.mark.parametrize("patience", [Patience(), Patience(9.0, 8.0, 2)])
def test_settings_come_back_as_they_were_given(tmp_path, patience):
    config = served(Config.of(data="digits", clients=3, sampling="all", algorithm="fedprox", options={"mu": 0.5}))
    terms = Terms(patience, 5.0, "none", True)
    told = app.settings(config, tmp_path / "run", terms)
    assert app.understood(told) == (config, (tmp_path / "run").resolve(), terms)
    for name in (app.CONFIG, app.OUT, app.TERMS):
        with pytest.raises(UsageError, match=f"'{name}' is missing"):
            app.understood({key: value for key, value in told.items() if key != name})


def test_a_supernode_without_a_folder_says_how_to_start_it():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = flower.Message(Letter(HELLO, "", bytes(32)).records(), 1, "query")
    context = flower.Context(1, 1, {}, flower.RecordDict(), {})
    with pytest.raises(UsageError, match="--node-config 'fedloom-state="):
        app.client_app()(message, context)


def test_a_folder_that_nobody_prepared_says_how_to():
    with pytest.raises(UsageError, match="fedloom join --engine flower"):
        Node.at(Path("nowhere"))


def test_joining_waits_for_a_run_and_gives_up(tmp_path):
    said = []
    with pytest.raises(NetworkError, match="no run has asked"):
        consent.enrol(tmp_path, Node("digits", "ana"), lambda found: True, patience=0.0, say=said.append)
    assert Node.at(tmp_path) == Node("digits", "ana")
    assert any(f'fedloom-state="{tmp_path}"' in text for text in said)
    assert (tmp_path / consent.KEY).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["join", "a-text", "--engine", "flower", "--data", "digits"], "an invitation has no place"),
        (["join", "--data", "digits"], "an invitation is missing"),
        (["serve", "exp.toml", "--engine", "flower", "--insecure"], "--insecure has no place"),
        (["serve", "exp.toml", "--engine", "flower", "--listen", "0.0.0.0:1"], "--listen has no place"),
        (["serve", "exp.toml", "--engine", "flowre"], "flowre"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(program, words)
    text = made.output + str(made.exception)
    assert made.exit_code
    assert said in text


def test_starting_the_commands_does_not_load_flower():
    code = "import sys, fedloom.deploy.flower.launch, fedloom.cli.app; print('flwr' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert made.stdout.split() == ["False"]
