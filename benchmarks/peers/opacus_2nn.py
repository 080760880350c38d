"""Opacus on the task of benchmarks/dp_sgd.py: one epoch per line of stdin, its seconds on stdout.

Nothing of fedloom is imported here: Opacus lives in a virtual environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import opacus
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RATE = 0.05


def network() -> nn.Module:
    """Build McMahan's 2NN."""
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def epoch(mode: str, size: int, data: TensorDataset) -> float:
    """Train one epoch with fresh weights; returns its seconds, without the set-up."""
    model, loss_of = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loader = DataLoader(data, batch_size=size, shuffle=mode == "plain PyTorch")
    if mode != "plain PyTorch":
        ghost = mode == "Opacus, ghost"
        made = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            criterion=loss_of,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=True,
            grad_sample_mode="ghost" if ghost else "hooks",
        )
        model, optimizer, loader = made[0], made[1], made[-1]
        loss_of = made[2] if ghost else loss_of
    model.train()
    start = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        if not len(y):
            continue
        loss_of(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sent = json.loads(sys.stdin.readline())
    data = TensorDataset(torch.tensor(sent["images"]), torch.tensor(sent["labels"]))
    print(opacus.__version__, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(epoch(order["mode"], order["size"], data), flush=True)


if __name__ == "__main__":
    main()
