"""A server and three clients in one program, on this machine: the data of each stay with it, and the model is the
simulation's to the last bit. Ten seconds; needs ``pip install fedloom[network]``.

On real machines each ``join`` runs where the data are; ``fedloom serve`` and ``fedloom join`` do the same in a shell.
"""

import threading
from pathlib import Path

import fedloom
from fedloom.deploy.serving.serve import Place

NAMES = ("ana", "luis", "carmen")
RUN = {"clients": 3, "sampling": "all", "rounds": 4, "model": "2nn", "lr": 0.1, "plan": "loop", "threads": 1}


def take_part(number: int, invitation: str) -> None:
    name = NAMES[number]
    fedloom.join(
        invitation,
        Path("parts") / name,
        name=name,
        number=number,
        state=Path("state") / name,
        agree=lambda found: bool(found.rounds),  # leave it out to be asked
        say=lambda text: print(f"{name:7} {text}"),
    )


def main() -> None:
    fedloom.split("digits", names=NAMES, scheme="iid", out="parts", seed=0)  # the samples that a simulation gives them
    members = []

    def invited(invitation: str) -> None:
        for number in range(len(NAMES)):
            members.append(threading.Thread(target=take_part, args=(number, invitation)))
            members[-1].start()

    run = fedloom.serve("digits", Place("127.0.0.1:0"), out="runs/served", invited=invited, progress=False, **RUN)
    for member in members:
        member.join()
    print("\n".join(run.lines()))
    there = fedloom.simulate("digits", out="runs/simulated", progress=False, **RUN)
    same = fedloom.load_model(run.model).vector().equal(fedloom.load_model(there.model).vector())
    print(f"the simulation of it has the same bits: {same}")


if __name__ == "__main__":
    main()
