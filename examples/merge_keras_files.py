"""Merge model files that Keras wrote, without their data and without fedloom at the members'.

    python merge_keras_files.py ana.keras luis.keras carmen.keras global.keras

Files of Keras 2 and Keras 3 may be mixed. Where nothing says how many samples a model saw, all count the same.
"""

import sys

import fedloom


def main(files: list[str], out: str) -> None:
    try:
        merged = fedloom.merge(files, "fedavg", out=out)
    except fedloom.FedloomError as error:  # one line: what was found, in which file, what to do
        sys.exit(f"{error}")
    for finding in merged.findings:
        print(f"{finding.level}: {finding.title}. {finding.text}")
    print(f"{merged.out}: {merged.model.layout.trainable:,} parameters out of {len(merged.members)} files")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:-1], sys.argv[-1])
