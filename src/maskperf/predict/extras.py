"""Packages that only some uses need: imported when they are used, with what to install where they are missing."""

import importlib
from typing import Any

from maskperf.errors import ConfigError


def need(module: str, *, purpose: str, install: str) -> Any:
    """Return the imported module.

    Errors: ConfigError, with what to install, where it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the package {module} ({error}). Fix: pip install {install}") from error
