"""Turn off the progress bars and notices of the libraries that commands use."""

from __future__ import annotations

import os
import sys

_SWITCHES = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # datasets: "Saving the dataset"
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # huggingface_hub, and transformers: "Loading weights"
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Silence ``datasets``, ``huggingface_hub`` and ``transformers`` in this process and its child processes.

    They read the environment on import, which happens later. A variable that the user has set is kept. Libraries that
    are already imported are silenced directly.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
