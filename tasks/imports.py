"""The user's modules: found before a worker is started, so that a slip is one line and not a traceback.

The law: nothing is imported here but packages on the way to a module; whether the module itself runs is
the worker's business.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable

from .errors import ConfigurationError


def check_imports(modules: Iterable[str]) -> None:
    """Raise ConfigurationError for a module that cannot be found from the current folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        if not _exists(module):
            close = difflib.get_close_matches(module, _nearby(module), n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigurationError(
                f"the module {module!r} (--import or TRELLIS_IMPORTS) cannot be found from {here}{hint}: "
                "give it as Python imports it, `package.module`, and start in the folder that holds it"
            )


def _exists(module: str) -> bool:
    if _looks_like_path(module):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
    except Exception:
        return True  # a package on the way is broken: the worker will say how, with a traceback


def _looks_like_path(module: str) -> bool:
    return "/" in module or module.endswith(".py")


def _nearby(module: str) -> list[str]:
    """Names that could have been meant: the modules in the current folder, and in the module's package."""
    if _looks_like_path(module):
        return [module.removesuffix(".py").strip("./").replace("/", ".")]
    names = [found.name for found in pkgutil.iter_modules([os.getcwd()])]
    package = module.rpartition(".")[0]
    if package and _exists(package):
        spec = importlib.util.find_spec(package)
        places = (spec.submodule_search_locations if spec else None) or []
        names += [f"{package}.{found.name}" for found in pkgutil.iter_modules(list(places))]
    return names
