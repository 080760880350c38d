from __future__ import annotations

import numpy as np
import pytest
import torch

from fedloom import files
from fedloom.errors import DataError, UsageError
from fedloom.models import io, sidecar
from fedloom.offline import fit, member
from fedloom.offline.train import train
from fedloom.training.local import Trainer


def test_a_training_writes_the_file_and_what_belongs_to_it(trained):
    folder = trained.parts / "ana"
    record, reason = sidecar.read(folder / "ana.keras")
    assert reason == ""
    assert record.client == "ana"
    assert record.samples == len(np.load(folder / "ana_Y.npy"))
    assert record.steps == 4 * -(-record.samples // 16)
    assert record.start == member.read(folder).start_digest
    assert [row["epoch"] for row in record.history] == [1, 2, 3, 4]
    assert record.metrics["test_accuracy"] > 0.8
    assert sum(record.class_counts) == record.samples
    assert (folder / "ana_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "macro avg" in (folder / "ana_report.txt").read_text()
    assert not list(folder.glob(".*"))


def test_keras_loads_the_file_and_agrees(trained):
    from fedloom.models.keras_backend import import_keras

    keras = import_keras()
    model = keras.saving.load_model(trained.shared[0])
    x = np.load(trained.parts / "ana" / "x_test_fed.npy")[:50].astype("float32") / 16
    theirs = model(x, training=False).detach().numpy()
    mine = io.load(trained.shared[0])
    with torch.no_grad():
        ours = mine.logits(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_same_command_gives_the_same_bits(team):
    path = team.shared[0]
    before = files.sha256(path)
    path.unlink()
    train(team.parts / "ana", 4, batch_size=16, lr=3e-3)
    assert files.sha256(path) == before


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bits(team, monkeypatch):
    path, before = team.shared[1], files.sha256(team.shared[1])
    path.unlink()
    whole = Trainer.run_epoch

    def until_the_third(self, on_batch=None):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return whole(self, on_batch)

    monkeypatch.setattr(Trainer, "run_epoch", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(team.parts / "luis", 4, batch_size=16, lr=3e-3)
    assert not path.exists()
    assert fit.checkpoint_path(path).is_file()
    epochs = []

    def counted(self, on_batch=None):
        epochs.append(self.epoch + 1)
        return whole(self, on_batch)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    made = train(team.parts / "luis", 4, batch_size=16, lr=3e-3)
    assert epochs == [3, 4]
    assert files.sha256(path) == before
    assert len(made.sidecar.history) == 4
    assert not fit.checkpoint_path(path).exists()


def test_a_checkpoint_of_another_run_is_passed_over(team, monkeypatch):
    kept = fit.checkpoint_path(team.shared[0])
    monkeypatch.setattr("fedloom.offline.fit.Trainer.run_epoch", Trainer.run_epoch)
    files.write_tensors(kept, {"progress": torch.tensor([1, 1])}, {"identity": "another", "history": "[]"})
    assert len(train(team.parts / "ana", 1).sidecar.history) == 1
    kept.write_bytes(b"cut")
    assert len(train(team.parts / "ana", 1).sidecar.history) == 1


def test_a_fresh_start_is_its_own_and_says_what_it_costs(team, tmp_path):
    a = train(team.parts / "ana", 1, fresh_start=True, out=tmp_path / "a.keras")
    b = train(team.parts / "luis", 1, fresh_start=True, out=tmp_path / "b.keras")
    assert "averaging it with theirs" in a.notes[0]
    starts = {a.sidecar.start, b.sidecar.start, member.read(team.parts / "ana").start_digest}
    assert len(starts) == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".h5"])
def test_every_format_holds_the_same_model(team, tmp_path, suffix):
    made = train(team.parts / "ana", 4, batch_size=16, lr=3e-3, out=tmp_path / f"ana{suffix}")
    assert torch.equal(io.load(made.path).vector(), io.load(team.shared[0]).vector())


def test_a_pytorch_factory_trains_when_the_command_names_its_code(tmp_path):
    from fedloom.offline.split import split

    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make(n_classes):\n    conv = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]\n"
        "    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(144, n_classes), nn.LogSoftmax(1))\n"
    )
    reference = f"{tmp_path / 'net.py'}:make"
    made = split("digits", names=["ana", "luis"], out=tmp_path / "p", model=reference)
    with pytest.raises(Exception, match="pass --model"):
        train(made.out / "ana", 1)
    done = train(made.out / "ana", 3, model=reference, lr=1e-2)
    assert done.accuracy > 0.7
    assert done.path.suffix == ".pt"
    state = torch.load(done.path, weights_only=True)
    assert state["1.num_batches_tracked"].item() > 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "ana_X.npy").write_bytes(b"\x93NUMPY"), r"ana_X\.npy: damaged"),
        (lambda f: (f / "ana_X.npy").unlink(), r"ana_X\.npy: no such file"),
        (lambda f: np.save(f / "ana_Y.npy", np.zeros(3, dtype=np.int64)), "checksum differs"),
        (lambda f: np.save(f / "ana_X.npy", np.array([object()], dtype=object)), r"ana_X\.npy: damaged"),
        (lambda f: (f / "member.json").unlink(), r"holds no member\.json"),
        (lambda f: (f / "member.json").write_text("{}"), r"member\.json: damaged"),
        (lambda f: (f / "start.keras").write_bytes((f / "ana.keras").read_bytes()), "not the shared start"),
    ],
)
def test_a_spoilt_folder_is_named(team, spoil, words):
    spoil(team.parts / "ana")
    with pytest.raises(DataError, match=words):
        train(team.parts / "ana", 1)


def test_the_folder_of_all_parts_is_not_a_members(team):
    with pytest.raises(DataError, match="choose one member's folder, such as"):
        train(team.parts, 1)


def test_bad_options_are_named(team):
    with pytest.raises(UsageError, match="prox_mu is -1"):
        train(team.parts / "ana", 1, prox_mu=-1)
    with pytest.raises(UsageError, match="device 'cuad' cannot be used"):
        train(team.parts / "ana", 1, device_name="cuad")


def test_the_notebook_view_shows_report_and_curves(team):
    made = train(team.parts / "ana", 1)
    view = made._repr_html_()
    assert "macro avg" in view
    assert "<svg" in view
