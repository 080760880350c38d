import json
import time

from fedloom.deploy.serving.presence import FILE


def test_a_served_run_says_who_is_there_and_for_how_long_they_worked_but_no_keys(world):
    made = world(rounds=2)
    for number in range(3):
        made.start(made.client(number), f"c{number}")
    began = time.time()
    made.serve()
    text = (made.folder / "run" / FILE).read_text()
    said = json.loads(text)
    keys = [row["key"] for row in json.loads((made.folder / "run" / "clients.json").read_text())["clients"]]
    assert len(keys) == said["count"] == len(said["clients"]) == 3
    assert not any(key in text for key in keys)
    for row in said["clients"]:
        assert row["name"] == f"c{row['number']}"
        assert row["agreed"]
        assert 0 < row["took"] < time.time() - began
        assert began <= row["seen"] <= said["time"] + 1
    assert said["waiting"] == []
