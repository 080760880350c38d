"""A PyTorch model of your own: a function that builds it, and the name of that function wherever the model is needed.

The members' files are state dicts (.pt): they hold arrays and no code, so who runs the model says where its code is.
"""

import torch
from torch import nn

import fedloom

CODE = f"{__file__}:build"


def build(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A convolution and two dense layers, for grey images of any size, with values from 0 to 1."""
    height, width = input_shape[:2]
    return nn.Sequential(
        nn.Unflatten(1, (1, height)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, n_classes),
    )


def main() -> None:
    parts = fedloom.split("digits", clients=3, model=CODE, out="torch-parts", overwrite=True)
    print(f"the shared start: {parts.model}")
    files = [
        fedloom.train(
            parts.out / name, epochs=8, optimizer="sgd", lr=0.1, momentum=0.9, model=CODE, progress=False
        ).path
        for name in parts.members
    ]
    fedloom.merge(files, "fedavg", out="global.pt")

    # The merged file is an ordinary state dict.
    model = build((8, 8), 10)
    model.load_state_dict(torch.load("global.pt", weights_only=True))
    test = fedloom.load_data("digits", "test")
    with torch.no_grad():
        found = model(torch.from_numpy(test.x).float() / test.high).argmax(1)
    print(f"accuracy of the merged model, in plain PyTorch: {(found.numpy() == test.y).mean():.1%}")


if __name__ == "__main__":
    main()
