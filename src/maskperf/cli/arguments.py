"""The argument parser of every command, and the paths that arguments name."""

import argparse
import importlib
import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from maskperf.errors import ConfigError, DataError, Problem, StorageError
from maskperf.files import suggestion
from maskperf.overrides import describe_type, expand_home, parse_value

HELP_COLUMNS = 100
SIZE_DIVISOR = 32  # of padded sides


class CommandParser(argparse.ArgumentParser):
    """The parser of one command; arguments it cannot use are ConfigErrors, with the nearest option.

    The module of the command has `USAGE`, the `EXAMPLES` at the end of its help, `add_options`, and the command itself.
    """

    def __init__(self, command: str):
        module = importlib.import_module(f"maskperf.cli.{command}")
        self.run: Callable[[argparse.Namespace], int] = getattr(module, command)
        super().__init__(
            f"maskperf {command}",
            usage=f"maskperf {command} {module.USAGE}",
            epilog=module.EXAMPLES,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=HELP_COLUMNS),
            add_help=False,
            allow_abbrev=False,
        )
        module.add_options(self)

    def add_path(self, name: str, metavar: str, help: str, **options: Any) -> None:
        """Add an option or argument that is a path; it is a Path, or None where it is not given."""
        self.add_argument(name, metavar=metavar, type=path_argument, help=help, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Return the options; `command` holds the whole command line."""
        options = list(self._option_string_actions)
        for argument in arguments:
            name = argument.partition("=")[0]
            if name.startswith("-") and name not in options:
                self.error(f"unknown option {name!r}{suggestion(name, options)}")
        return self.parse_intermixed_args(arguments, argparse.Namespace(command=[*self.prog.split(), *arguments]))


def name_from(names: Collection[str]) -> Callable[[str], str]:
    """Return an argument type that accepts one of `names`."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown name {text!r}{suggestion(text, names)}")
        return text

    return check


def value_of(kind: Any) -> Callable[[str], Any]:
    """Return an argument type that accepts the values of a type with limits, such as `Annotated[int, Meta(ge=1)]`."""

    def convert(text: str) -> Any:
        try:
            return parse_value(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {describe_type(kind)}") from error

    return convert


def padded_hw(text: str) -> tuple[int, int]:
    """Convert HEIGHTxWIDTH to the padded size of images."""
    found = re.fullmatch("([0-9]+)x([0-9]+)", text)
    height, width = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (height and width) or height % SIZE_DIVISOR or width % SIZE_DIVISOR:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in multiples of {SIZE_DIVISOR}, as 800x1344 is")
    return height, width


def path_argument(text: str) -> Path:
    """Convert an argument to a path; `~` and `~name` at its start are home folders."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return Path(expand_home(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_existing(name: str, paths: Iterable[Path]) -> None:
    """Raise a DataError with each path of the option or argument `name` that does not exist."""
    fix = "Check its spelling, and the folder that the command is started in."
    at = {"where": "the path", "field": name, "message": "There is no such file or folder.", "fix": fix}
    missing = [Problem(file=str(path), value=str(path), **at) for path in paths if not path.exists()]
    if missing:
        raise DataError(missing)


def require_new_file(path: Path, *, overwrite: bool | None) -> None:
    """Raise a StorageError where `path` exists and must not be overwritten (None: never may), or cannot be made."""
    if path.is_dir():
        raise StorageError(f"{path}: is a folder, but a file is to be written there. Fix: give the name of a file.")
    if path.exists() and not overwrite:
        fix = "move the file away" if overwrite is None else "add --overwrite"
        raise StorageError(f"{path}: exists already, and nothing was changed. Fix: Choose another file, or {fix}.")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: the folder {path.parent} does not exist. Fix: make it, or choose another path.")


def make_folder(path: Path, *, option: str, mode: int = 0o777) -> None:
    """Make the folder that `option` names, with its parents."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        text = f"{path}: the folder cannot be made ({error.strerror}). Fix: choose another {option}."
        raise StorageError(text) from error
