"""A recipe by its name, or one of one's own: `my_recipe.py`, `my_recipe.py:name`, or the config.json of a run."""

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from maskperf.config import RunConfig
from maskperf.errors import ConfigError
from maskperf.files import did_you_mean, suggestion
from maskperf.overrides import expand_home, from_json_text
from maskperf.recipes import RECIPES

EXAMPLE = "def my_recipe() -> RunConfig"


def is_file(recipe: str) -> bool:
    """Return whether a recipe is named by a file."""
    return recipe.partition(".py:")[0].endswith(".py") or ".py:" in recipe or recipe.endswith(".json")


def recipe_config(recipe: str) -> RunConfig:
    """Return the configuration that a recipe makes.

    Errors: ConfigError that names recipe, file, function and line.
    """
    if recipe in RECIPES:
        return RECIPES[recipe]()
    if not is_file(recipe):
        names = f"{suggestion(recipe, RECIPES)}; a file is my_recipe.py or the config.json of a run"
        raise ConfigError(f"recipe {recipe!r} does not exist{names}")
    path_text, colon, function = recipe.partition(".py:")
    path = Path(expand_home(path_text + ".py" if colon else recipe))
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such recipe file. Fix: give the path of a .py file or of a config.json")
    if path.suffix == ".json":
        return _of_json(path)
    if colon and not function:
        raise ConfigError(f"{recipe}: a name is missing behind the colon. Fix: {path}:my_recipe, or {path} alone")
    return _of_function(path, _chosen_function(_module_of(path), function, path))


def _of_json(path: Path) -> RunConfig:
    try:
        stored = from_json_text(path.read_text(encoding="utf-8"))
        return replace(stored, run_dir="")  # the folder of the run before, which no other writes into
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no configuration of a run.\n{error}\nFix: give its config.json") from error


def _module_of(path: Path) -> ModuleType:
    """Return the module of a file, after it ran as a script's modules do: its own folder can be imported from."""
    name = f"maskperf_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"{path}: {_place(error, path)}{type(error).__name__}: {error}. Fix: correct the file"
        ) from error
    return module


def _chosen_function(module: ModuleType, name: str, path: Path) -> Callable[[], object]:
    """Return the function of this name, or the one that says it returns a RunConfig."""
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    }
    if name:
        if name not in own:
            hint = did_you_mean(name, own) or (f"; it has {', '.join(own)}" if own else "; it has none")
            raise ConfigError(f"{path}: has no function {name!r}{hint}. Fix: {path}:NAME with one that it has")
        return own[name]
    typed = [key for key, value in own.items() if value.__annotations__.get("return") in (RunConfig, "RunConfig")]
    found = typed or [key for key, value in own.items() if not inspect.signature(value).parameters]
    if not found:
        raise ConfigError(f"{path}: has no function that returns a RunConfig. Fix: write one: {EXAMPLE}")
    if len(found) > 1:
        choices = " or ".join(f"{path}:{key}" for key in found)
        raise ConfigError(f"{path}: holds {len(found)} recipes. Fix: name one: {choices}")
    return own[found[0]]


def _of_function(path: Path, function: Callable[[], object]) -> RunConfig:
    where = f"{path}: function {function.__name__}"
    parameters = [
        name for name, one in inspect.signature(function).parameters.items() if one.default is inspect.Parameter.empty
    ]
    if parameters:
        raise ConfigError(f"{where}: wants {', '.join(parameters)}. Fix: a recipe is called without arguments")
    try:
        config = function()
    except Exception as error:
        raise ConfigError(f"{where}: {_place(error, path)}{type(error).__name__}: {error}. Fix: correct it") from error
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{where}: returned {type(config).__name__}, not a RunConfig. Fix: return RunConfig(...)")
    if not re.fullmatch("[a-zA-Z0-9_.-]+", config.recipe):
        text = f"{where}: recipe={config.recipe!r} cannot name a folder of runs"
        raise ConfigError(f"{text}. Fix: use letters, digits, dots, underscores and hyphens")
    return config


def _place(error: Exception, path: Path) -> str:
    """Return "line 3: " of the innermost line of the file that an error comes from."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}: "
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {frames[-1].lineno}: " if frames else ""
