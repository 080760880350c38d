"""What privacy and compression cost, on the digits. Half a minute; needs ``pip install fedloom[privacy,compression]``."""

import fedloom

COMMON = {"clients": 50, "per_round": 50, "rounds": 5, "model": "2nn", "lr": 0.2, "plan": "loop"}
RUNS = {
    "plain": {},
    "4-bits": {"compress": "int4"},
    "largest-1-percent": {"compress": "topk:0.01 | int8 | zstd"},
    "secure-sums": {"secure_aggregation": "protocol"},
    "hidden-clients": {"privacy": "central", "noise": 1.0, "clip": 0.3},
    "hidden-samples": {"privacy": "examples", "noise": 1.0, "lr": 0.5},
}


def main() -> None:
    for name, flags in RUNS.items():
        run = fedloom.simulate("digits", out=f"runs/{name}", progress=False, **COMMON | flags)
        last, sent = run.records[-1], sum(record.bytes_up for record in run.records)
        spent = f"   epsilon {last.metrics['epsilon']:.1f}" if "epsilon" in last.metrics else ""
        print(f"{name:18} {last.accuracy:6.1%}   {sent / 1e6:6.2f} MB up{spent}")


if __name__ == "__main__":
    main()
