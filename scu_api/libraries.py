"""The engines' libraries: imported only where a command needs them, and kept quiet."""

import logging
import os
import warnings
from importlib import import_module
from typing import Any

from scu.errors import InputError

LIBRARIES = r"(torch|transformers|trl|peft|accelerate|datasets|huggingface_hub|bitsandbytes)(\.|$)"


def load_engine(name: str) -> Any:
    """A module of scu.engines; one error with the way out where its libraries are missing."""
    quiet()
    try:
        return import_module(f"scu.engines.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "scu").partition(".")[0]
        if package == "scu":
            raise
        raise InputError(
            f"{package} is not installed; run pip install 'shannon-control-unit[torch]'"
        ) from error


def quiet() -> None:
    """Keep the libraries' progress bars, notices and deprecations off the terminal; errors stay.

    Before they are imported, for they read their environment then. What the user set is kept.
    """
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=LIBRARIES)
