"""A comparison such as ``fedloom demo`` makes, without training anything."""

import numpy as np

from fedloom.metrics import Counts
from fedloom.records import RoundRecord
from fedloom.report import Comparison, Finding, Interpolation, Row

MEMBERS = ("ana", "luis", "maría-josé", "tom", "the-hospital-of-saint-bartholomew", "uni")
MERGED = {
    "fedavg": 0.967,
    "weighted": 0.966,
    "fedavgm": 0.967,
    "fedadagrad": 0.951,
    "fedadam": 0.942,
    "fedyogi": 0.943,
    "median": 0.961,
    "trimmed-mean": 0.964,
    "geometric-median": 0.968,
    "krum": 0.944,
    "multi-krum": 0.961,
    "bulyan": 0.953,
    "centered-clipping": 0.967,
    "fednova": 0.967,
}


def counts(accuracy: float, n_classes: int, n: int, rng: np.random.Generator) -> Counts:
    """Draw a confusion matrix of ``n`` samples of about that accuracy."""
    truth = rng.integers(0, n_classes, n)
    near = (truth + rng.choice([1, 1, 1, 3, n_classes - 1], n)) % n_classes
    said = np.where(rng.random(n) < accuracy, truth, near)
    confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(confusion, (truth, said), 1)
    return Counts(confusion, float(n * (1.05 - accuracy) * 2), n)


def curve(top: float, epochs: int, rng: np.random.Generator) -> list[dict[str, float]]:
    out = []
    for epoch in range(1, epochs + 1):
        accuracy = top - 0.7 * np.exp(-0.8 * epoch) + rng.normal(0, 0.003)
        line = {"loss": 2.2 * np.exp(-0.6 * epoch) + 0.05, "val_loss": 2.0 * np.exp(-0.5 * epoch) + 2.2 * (1.02 - top)}
        line["val_loss"] += 0.02 * rng.random()
        line |= {"accuracy": min(1.0, accuracy + 0.01), "val_accuracy": accuracy}
        out.append({"epoch": epoch} | {k: float(v) for k, v in line.items()})
    return out


def sample(
    n_members: int = 6,
    n_classes: int = 10,
    n: int = 360,
    epochs: int = 8,
    rounds: int = 10,
    floor: float = 0.93,
    broken: bool = False,
) -> Comparison:
    """Build the sample: ``broken`` lets most methods fall to chance, as merging different starts does."""
    rng = np.random.default_rng(4)
    names = [MEMBERS[i] if n_members <= len(MEMBERS) else f"client-{i:02d}" for i in range(n_members)]
    classes = (
        tuple(str(i) for i in range(n_classes)) if n_classes == 10 else tuple(f"class {i}" for i in range(n_classes))
    )
    accuracies = floor + 0.02 * rng.random(n_members)
    rows = [
        Row(m, "member", counts(a, n_classes, n, rng), 3 + rng.random(), "239 samples, 8 epochs of adam")
        for m, a in zip(names, accuracies, strict=True)
    ]
    for name, accuracy in MERGED.items():
        low = broken and name not in ("krum", "weighted")
        note = "uniform weights: no sidecar says otherwise" if name == "fedavg" else ""
        figure = counts(1 / n_classes if low else accuracy, n_classes, n, rng)
        rows.append(Row(name, "method", figure, 0.0004 + 0.05 * rng.random(), note))
    rows.append(Row("ensemble", "ensemble", counts(0.972, n_classes, n, rng), 0.21, "six models instead of one"))
    rows.append(Row("central", "central", counts(0.985, n_classes, n, rng), 18.2))
    if rounds:
        rows.append(
            Row(f"fedavg, {rounds} round" + "s" * (rounds > 1), "global", counts(0.983, n_classes, n, rng), 75.0)
        )
    findings = [
        Finding(
            "good",
            "Merging helps: fedavg is better than every member alone",
            "The members share a start, so the same unit means the same thing in each of them and averaging works. "
            "One merge gains 2.1 points over the best member; central training is 1.6 points ahead.",
            "fedloom next-round parts/ --models *.keras --method fedavg",
        ),
        Finding(
            "info",
            "Weights are uniform",
            "No sidecar says how many samples a member has, so all members count the same.",
        ),
    ]
    if broken:
        findings = [
            Finding(
                "problem",
                "Most merged models guess",
                "fedavg predicts one class for nearly everything. The members were trained from different random "
                "starts: the same feature sits in a different unit of each model, and averaging blends unrelated "
                "units.\n\n"
                "Hand out one shared start and train again, or align the files that exist before averaging.",
                "fedloom split digits --clients 6 --scheme stratified --out parts/",
            ),
            Finding(
                "warning", "krum returns one member's model", "Its accuracy is that member's, not that of a merge."
            ),
            *findings,
        ]
    curves = {m: curve(0.95, epochs, rng) for m in names} | {"central": curve(0.985, epochs, rng)}
    class_counts = {m: [int(v) for v in rng.dirichlet([0.6] * n_classes) * 240] for m in names}
    top = rows[-1].counts.accuracy
    records = [
        RoundRecord(r, float(top - 0.06 * (np.exp(-r / 2) - np.exp(-rounds / 2))), 0.1 + 0.4 / r, 0.05, n_members, 7.4)
        for r in range(1, rounds + 1)
    ]
    return Comparison(
        "Digits in six parts: trained apart, merged, compared",
        "digits",
        classes,
        rows,
        findings,
        curves,
        class_counts,
        records,
        {
            "fednova": "the sidecars do not say how many local steps were taken",
            "bulyan": "needs at least 7 models to withstand one bad one, there are 6",
        },
        {
            "Command": "fedloom compare models/*.keras --data x_test_fed.npy,y_test_fed.npy --train-central parts/",
            "Seed": "0",
            "Files": "models/ana.keras, models/luis.keras, models/uni.keras",
            "Written": "2025-01-31 12:00 +0000",
            "fedloom": "0.1.0",
            "Versions": "Python 3.12.1, torch 2.6.0, keras 3.8.0, numpy 2.2.1",
        },
    )


def line(name: str, depth: float, first: str = "ana", second: str = "luis") -> Interpolation:
    """Draw a valley of that depth (0-1) between two members of 95 %."""
    alphas = tuple(i / 10 for i in range(11))
    below = tuple(depth * 4 * a * (1 - a) for a in alphas)
    accuracies, losses = tuple(0.95 - b for b in below), tuple(0.2 + 3 * b for b in below)
    return Interpolation(name, first, second, 1000, alphas, losses, accuracies, 3 * depth, depth)


LINES = [line("as they are", 0.8), line("aligned", 0.2), line("aligned, BatchNorm recalibrated", 0.03)]


def aligned(floor: float = 0.93) -> Comparison:
    """Build the sample of members without a shared start, aligned as well."""
    rng = np.random.default_rng(5)
    made = sample(rounds=0, floor=floor, broken=True)
    kinds = {"aligned mean": "aligned", "least squares": "aligned", "ana, new last layer": "baseline"}
    rows = [Row(name, kind, counts(0.99, 10, 360, rng), 1.0) for name, kind in kinds.items()]
    made.rows += rows
    made.lines += LINES
    return made
