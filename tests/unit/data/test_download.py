"""Downloads against a real server on the loopback interface: whole and right, or nothing is left behind."""

import gzip
import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedloom.data.download import DownloadError, fetch, progress_bar
from fedloom.errors import StorageError

RAW = bytes(range(256)) * 600
GOOD = gzip.compress(RAW, mtime=1)
SHA = hashlib.sha256(RAW).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        body = {"/wrong": gzip.compress(RAW[:-1] + b"!"), "/page": b"<html>sign in</html>"}.get(self.path, GOOD)
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path in ("/cut", "/unsized"):
            body = body[: len(body) // 2]
        if self.path == "/silent":
            time.sleep(1.5)
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["good", "moved"])
def test_a_good_file_arrives_whole_with_progress(server, tmp_path, path):
    seen = []
    target = fetch([f"{server}/{path}"], tmp_path / "new" / "a.gz", SHA, lambda *step: seen.append(step), 5)
    assert target.read_bytes() == GOOD
    assert seen[-1] == ("a.gz", len(GOOD), len(GOOD))
    assert [p.name for p in target.parent.iterdir()] == ["a.gz"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cut", "cut after .* bytes"),
        ("unsized", "not a whole gzip file"),
        ("wrong", "wrong bytes: SHA-256"),
        ("page", "not a whole gzip file"),
        ("missing", "HTTP 404"),
        ("silent", "timed out"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(server, tmp_path, path, reason):
    with pytest.raises(DownloadError, match=reason) as error:
        fetch([f"{server}/{path}"], tmp_path / "a.gz", SHA, timeout=0.5)
    assert f"{server}/{path}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_download_does_not_touch_what_is_there(server, tmp_path):
    (tmp_path / "a.gz").write_bytes(b"old")
    with pytest.raises(DownloadError):
        fetch([f"{server}/wrong"], tmp_path / "a.gz", SHA, timeout=5)
    assert (tmp_path / "a.gz").read_bytes() == b"old"


def test_the_next_mirror_is_tried_and_every_failure_is_said(server, tmp_path):
    fetch([f"{server}/missing", f"{server}/wrong", f"{server}/good"], tmp_path / "a.gz", SHA, timeout=5)
    assert (tmp_path / "a.gz").read_bytes() == GOOD
    with pytest.raises(DownloadError, match=r"404.*; .*wrong bytes"):
        fetch([f"{server}/missing", f"{server}/wrong"], tmp_path / "b.gz", SHA, timeout=5)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.gz", "http://host.invalid/a.gz", "nonsense"])
def test_no_network_is_said_in_one_line(tmp_path, url):
    with pytest.raises(DownloadError) as error:
        fetch([url], tmp_path / "a.gz", SHA, timeout=2)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_is_no_fault_of_the_network(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        fetch([f"{server}/good"], tmp_path / "file" / "a.gz", SHA, timeout=5)


def test_ctrl_c_leaves_nothing(server, tmp_path):
    def interrupt(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([f"{server}/good"], tmp_path / "a.gz", SHA, interrupt, 5)
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_draws_on_standard_error_and_only_when_used(server, tmp_path, capsys):
    with progress_bar():
        pass
    assert capsys.readouterr() == ("", "")
    with progress_bar() as show:
        fetch([f"{server}/good"], tmp_path / "a.gz", SHA, show, 5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.gz" in err
