"""What a large model costs the server in memory, and that saving it changes no bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fedloom import checkpoint
from fedloom.aggregate.mean import StreamingMean
from fedloom.deploy.beside import Beside
from fedloom.deploy.carrier.staging import IN_MEMORY, Staging
from fedloom.deploy.protocol.wire import DIGEST, Raw, Summed, pieces, plain, read, sealed
from fedloom.rounds import Snapshot

LARGE = 3_000_001  # numbers: 12 MB


def held() -> int:
    """Return the bytes that are only in memory."""
    text = Path("/proc/self/status").read_text()
    return sum(int(kb) << 10 for kb in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", text, re.MULTILINE))


@pytest.mark.parametrize("size", [7, LARGE])
def test_a_mean_that_is_taken_has_the_bits_of_the_result(size):
    chance = torch.Generator().manual_seed(0)
    first, second = StreamingMean(size), StreamingMean(size)
    for weight in (1.0, 3.0, 0.5):
        vector = torch.randn(size, generator=chance)
        first.add(vector, weight)
        second.add(vector, weight)
    assert torch.equal(first.take(), second.result())


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux says what is held")
def test_a_large_mean_takes_the_place_of_its_sum():
    vector = torch.ones(10 * LARGE)
    before = held()
    mean = StreamingMean(10 * LARGE)
    mean.add(vector)
    summed = held() - before
    found = mean.take()
    left = held() - before
    assert 1.8 * found.nbytes < summed < 2.3 * found.nbytes
    assert left < 1.3 * found.nbytes


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux says what is held")
def test_a_state_rests_in_its_checkpoint_with_the_same_numbers(tmp_path):
    vector = torch.randn(10 * LARGE)
    copy, small = vector.clone(), torch.ones(3)
    path = checkpoint.save(tmp_path, Snapshot(1, {"model": vector, "small": small}))
    before = held()
    checkpoint.rest(path, {"model": vector, "small": small})
    assert before - held() > 0.8 * copy.nbytes
    assert torch.equal(vector, copy)
    path.unlink()
    vector += 1  # a private copy of the pages: nothing is written to the file
    assert torch.equal(vector, copy + 1)
    assert torch.equal(small, torch.ones(3))


@pytest.mark.parametrize("size", [10, 2_000_000])
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_a_message_that_is_summed_as_it_goes_is_the_same_message(size, chunk):
    raw = Raw(4, {"round": 1}, {("delta", ""): torch.arange(size, dtype=torch.float32)})
    whole = b"".join(pieces(raw))
    summed, came = Summed(len(whole)), Summed(len(whole))
    sent = [bytes(piece) for piece in sealed(plain(raw), chunk, summed)]
    for piece in sent:
        came.add(piece)
    assert b"".join(sent) == whole
    assert came.digest() == summed.digest() == whole[-DIGEST:]
    assert torch.equal(read(bytearray(whole), came.digest()).arrays["delta", ""], raw.arrays["delta", ""])


def test_an_upload_is_summed_up_anew_when_it_begins_anew(tmp_path):
    data = bytes(range(256)) * (IN_MEMORY // 128)
    staging = Staging(tmp_path)
    part, turn = staging.begin(b"key", b"digest", len(data), 0)
    staging.add(part, turn, 0, memoryview(bytes(1000)))
    part, turn = staging.begin(b"key", b"digest", len(data), 0)  # another start, other bytes
    staging.add(part, turn, 0, memoryview(data)[:5000])
    part, turn = staging.begin(b"key", b"digest", len(data), 5000)
    staging.add(part, turn, 5000, memoryview(data)[5000:])
    expected = Summed(len(data))
    expected.add(data)
    assert part.summed.digest() == expected.digest()
    assert bytes(part.whole()) == data
    staging.end(b"key", part, b"thanks")


def test_what_goes_on_beside_says_what_went_wrong():
    def broken() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), Beside(broken) as found:
        found.result()
