"""The one place that imports Keras, on its PyTorch backend."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def import_keras() -> ModuleType:
    """Import Keras on its PyTorch backend and return the module.

    ``KERAS_BACKEND`` is set to ``torch`` unless Keras is loaded already: the backend is fixed by the first import.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
    import keras

    module: ModuleType = keras
    return module
