"""The whole exercise in Python: split, train apart, merge, compare. Run it in an empty folder; it takes seconds."""

from pathlib import Path

import fedloom

NAMES = ["ana", "luis", "carmen"]


def main() -> None:
    # Every member gets a folder with a third of the digits, and all get the same initial model.
    parts = fedloom.split("digits", names=NAMES, model="2nn", out="parts", overwrite=True)
    print(f"{', '.join(parts.members)} hold {[sum(counts) for counts in parts.class_counts.values()]} samples")

    # On each member's own machine; the file and its .json are what is sent back.
    files = [fedloom.train(parts.out / name, epochs=10, lr=3e-3, progress=False).path for name in NAMES]

    # One model out of three. What was noticed on the way is said in words.
    merged = fedloom.merge(files, "fedavg", out="global.keras")
    for finding in merged.findings:
        print(f"{finding.level}: {finding.title}")

    # A merged model is a PyTorch module inside, and a file that Keras loads outside.
    test = fedloom.load_data("digits", "test")
    comparison = fedloom.compare(files, test, central=parts.out, progress=False)
    for row in comparison.ranked():
        print(f"{row.name:18} {row.counts.accuracy:6.1%}  {row.kind}")
    print(f"the page: {Path('comparison', 'report.html').resolve()}")


if __name__ == "__main__":
    main()
