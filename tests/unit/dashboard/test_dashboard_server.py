import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from http.cookies import SimpleCookie

import pytest
from dashboard_runs import append, get, row, run, started
from prometheus_client.parser import text_string_to_metric_families

import fedloom
from fedloom.dashboard import needs, pages
from fedloom.dashboard.watching import watch
from fedloom.errors import DataError, MissingDependency, UsageError

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def runs(tmp_path):
    run(tmp_path / "runs" / "first", [started(), row(1, 0.5), row(2, 0.75)])
    (tmp_path / "runs" / "first" / "report.html").write_text("<title>the report</title>")
    return tmp_path / "runs"


def messages(url, headers=None, until=lambda kinds: False):
    """Read server-sent events until ``until`` says so of those that came."""
    parts, found = urllib.parse.urlsplit(url), []
    line = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    try:
        line.request("GET", f"{parts.path}?{parts.query}", headers=headers or {})
        answer = line.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        while not until(found):
            text = answer.readline().decode().strip()
            if text.startswith("event:"):
                kind = text[6:].strip()
            elif text.startswith("data:"):
                found.append((kind, json.loads(text[5:])))
    finally:
        line.close()
    return found


def test_a_page_hears_of_rounds_as_they_come(runs):
    with watch(runs) as made:

        def until(found):
            rounds = [data for kind, data in found if kind == "rounds"]
            if len(rounds) == 1 and not (runs / "said").exists():
                (runs / "said").touch()
                append(runs / "first", row(3, 0.875))
            return len(rounds) == 2

        found = messages(f"{made.url}events?run=first", until=until)
    assert [kind for kind, _ in found[:3]] == ["runs", "run", "rounds"]
    assert found[0][1]["names"] == ["first"]
    last = found[-1][1]
    assert last["from"] == 2
    assert [one["accuracy"] for one in last["rounds"]] == [0.875]


def test_the_page_may_load_nothing_from_elsewhere_and_its_policy_fits_its_parts(runs):
    with watch(runs) as made:
        status, headers, text = get(made.url)
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert text == pages.page()
    found = set(re.findall(r"https?://[^\s'\"<)]+", text))
    assert found == {"http://www.w3.org/2000/svg"}  # the name of a language, not an address
    assert not re.search(r"\sstyle=|\son\w+=", re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.S))


def test_without_a_token_nothing_but_the_form_is_shown(runs):
    with watch(runs, token=TOKEN) as made:
        base = made.url.partition("?")[0]
        for path in ("", "?token=another-one-entirely", f"?token={TOKEN[:-1]}"):
            status, _, text = get(base + path)
            assert status == 401
            assert "digits" not in text
            assert 'action="enter"' in text
        for path in ("events", "runs", "report?run=first", "metrics"):
            assert get(base + path)[0] == 401
            assert get(base + path, {"authorization": "Bearer wrong-wrong-wrong"})[0] == 401
        assert get(base + "enter", data=b"token=wrong")[0] == 401
        assert get(base + "enter", data=b"token=" + b"x" * 5000)[0] == 413


def test_a_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(runs):
    with watch(runs, token=TOKEN) as made:
        base = made.url.partition("?")[0]
        assert made.url == f"{base}?token={TOKEN}"
        for answer in (get(made.url), get(f"{base}enter", data=f"token={TOKEN}".encode())):
            assert answer[0] == 200
            cookie = SimpleCookie(answer[1]["set-cookie"])
            (name, kept), *others = cookie.items()
            assert not others
            assert kept["httponly"]
            assert kept["samesite"].lower() == "strict"
            status, _, text = get(f"{base}runs", {"cookie": f"{name}={kept.value}"})
            assert status == 200
            assert json.loads(text)["first"]["rounds"] == 2
        assert get(f"{base}runs", {"authorization": f"Bearer {TOKEN}"})[0] == 200
        found = messages(f"{base}events", {"authorization": f"Bearer {TOKEN}"}, lambda said: len(said) == 2)
        assert found[1][1]["facts"]["tested"]["accuracy"] == 0.75


def test_a_page_for_this_machine_alone_answers_to_no_other_name(runs):
    with watch(runs) as made:
        assert get(f"{made.url}runs", {"host": "evil.example"})[0] == 401
        assert get(made.url, {"host": "evil.example:80"})[0] == 401
        assert get(f"{made.url}runs", {"host": "localhost:1"})[0] == 200


def test_a_page_that_is_closed_makes_room_for_another(runs, monkeypatch):
    monkeypatch.setattr("fedloom.dashboard.app.MOST_PAGES", 1)
    with watch(runs) as made:
        place = urllib.parse.urlsplit(made.url).netloc

        def opened():
            line = http.client.HTTPConnection(place, timeout=20)
            line.request("GET", "/events")
            answer = line.getresponse()
            return line, answer

        for _ in range(3):
            ends = time.monotonic() + 20
            line, answer = opened()
            while answer.status == 503 and time.monotonic() < ends:
                line.close()
                line, answer = opened()
            assert answer.readline() == b"retry: 2000\n"
            assert get(f"{made.url}events")[0] == 503
            answer.close()
            line.close()


def test_reports_and_metrics(runs):
    with watch(runs) as made:
        status, headers, text = get(f"{made.url}report?run=first")
        assert (status, text) == (200, "<title>the report</title>")
        assert "sandbox" in headers["content-security-policy"]
        for name in ("second", "../first", "", "first/../first"):
            assert get(f"{made.url}report?run={urllib.parse.quote(name)}")[0] == 404
        _, headers, text = get(f"{made.url}metrics")
        assert headers["content-type"].startswith("text/plain")
        named = {family.name for family in text_string_to_metric_families(text)}
        assert {"fedloom_accuracy", "fedloom_round", "fedloom_sent_bytes"} <= named


def test_others_need_a_token_that_nobody_can_guess(runs):
    with watch(runs, "0.0.0.0:0") as one, watch(runs, "0.0.0.0:0") as two:
        assert len(one.token) >= 32
        assert one.token != two.token
        assert "0.0.0.0" not in one.url
        assert get(f"http://127.0.0.1:{one.port}/runs", {"authorization": f"Bearer {two.token}"})[0] == 401
        assert get(f"http://127.0.0.1:{one.port}/runs", {"authorization": f"Bearer {one.token}"})[0] == 200


@pytest.mark.parametrize(
    "listen", ["8080", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "no.such.host.invalid:0", ":1"]
)
def test_an_address_that_is_none_is_refused(runs, listen):
    with pytest.raises(UsageError, match="--listen"):
        watch(runs, listen)


def test_a_port_in_use_and_a_short_token_and_a_missing_folder_are_refused(runs):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="cannot listen on"):
        watch(runs, f"127.0.0.1:{other.getsockname()[1]}")
    with pytest.raises(UsageError, match="12 letters"):
        watch(runs, token="short")
    with pytest.raises(DataError, match="no such folder"):
        fedloom.watch(runs / "none")


def test_a_missing_package_is_said_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(needs.PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(MissingDependency, match=r"no-such-package: pip install 'fedloom\[dashboard\]'"):
        needs.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_address_and_ends_when_it_is_told_to(runs, number):
    command = [sys.executable, "-m", "fedloom", "dashboard", str(runs), "--listen", "127.0.0.1:0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            line = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=20)
            line.request("GET", "/events?run=first")  # a page that is open does not keep it
            line.getresponse().readline()
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
            line.close()
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert err == ""


def test_stopping_twice_is_stopping(runs):
    made = watch(runs)
    made.stop()
    made.stop()
    assert made.url in made._repr_html_()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", made.port), timeout=5)
