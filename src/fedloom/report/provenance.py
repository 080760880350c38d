"""How a report was made, as labels and texts for its last section."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

import fedloom

_PACKAGES = ("torch", "keras", "numpy", "scikit-learn")


def provenance(
    command: str = "", *, seed: int | None = None, files: Sequence[str] = (), when: datetime | None = None
) -> dict[str, str]:
    """Collect what ``Comparison.made`` holds; what is not known is left out.

    Args:
        command: The command or call that made the report.
        seed: The seed it used.
        files: The files it read.
        when: The time; now by default.
    """
    made = {"Command": command, "Seed": "" if seed is None else f"{seed}", "Files": "\n".join(files)}
    made["Written"] = (when or datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M %z").strip()
    made["fedloom"] = fedloom.__version__
    made["Versions"] = ", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)])
    made["Machine"] = f"{platform.system()} {platform.machine()}"
    return {label: text for label, text in made.items() if text}


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"
