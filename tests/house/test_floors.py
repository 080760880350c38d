"""The house: which module may import which, and what an import may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedloom

PACKAGE = Path(fedloom.__file__).parent
FLOORS = [
    {"errors", "rng", "layout", "records", "files", "events", "addresses"},
    {"partition", "metrics", "aggregate", "server_opt", "compress", "privacy"},
    {"models", "data", "training"},
    {
        *("merging", "align", "algorithms", "attacks", "sampling", "network", "schedule"),
        *("clients", "engines", "store", "checkpoint", "config", "rounds"),
    },
    {"offline", "simulation", "report", "leakage", "deploy", "dashboard"},
    {"cli", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.append(node.module or "")
            if node.module == "fedloom":
                names += [f"fedloom.{alias.name}" for alias in node.names]
    rooms = {name.split(".")[1] for name in names if name.startswith("fedloom.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_arrow_runs_up(path):
    mine = FLOOR[room(path)]
    above = {r for r in imported_rooms(path) if FLOOR[r] > mine}
    assert not above, f"floor {mine} imports {above}"


def test_every_room_has_a_floor():
    assert {room(p) for p in MODULES} == set(FLOOR)


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import fedloom; dir(fedloom)",
        "from fedloom.cli.app import app\ntry: app(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import fedloom", "fedloom --help"],
)
def test_start_up_loads_nothing_heavy(code):
    heavy = {"torch", "keras", "numpy", "scipy", "sklearn", "matplotlib", "rich", "h5py", "cryptography", "starlette"}
    assert not heavy & loaded_by(code)


def test_public_names_exist():
    assert sorted(fedloom.__all__) == sorted(set(fedloom.__all__))
    for name in fedloom.__all__:
        assert getattr(fedloom, name) is not None


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'mrege'"):
        fedloom.mrege  # noqa: B018


def test_public_functions_stay_functions_after_their_packages_are_imported():
    code = (
        "import fedloom, fedloom.training.local, fedloom.offline.split\nassert callable(fedloom.split), fedloom.split\n"
    )
    loaded_by(code + "assert callable(fedloom.train) and callable(fedloom.merge)")
