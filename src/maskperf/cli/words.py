"""The words of a command: options read, and files that may be written."""

import argparse
import difflib
from pathlib import Path
from typing import NoReturn

from maskperf.errors import ConfigError, StorageError
from maskperf.overrides import path_of_word


class WordParser(argparse.ArgumentParser):
    """A parser whose complaints are errors of this program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help tells more)")


def asks_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def path_word(word: str) -> str:
    """Return the path that a word means; to be the `type` of every option that is one."""
    try:
        return path_of_word(word)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_words(parser: WordParser, arguments: list[str]) -> argparse.Namespace:
    """Return what the words choose.

    Errors: ConfigError for an unknown option, with the nearest one, and for a value that is missing or not allowed.
    """
    options = [name for action in parser._actions for name in action.option_strings]
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("-") and name not in options:
            nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(options)}"
            raise ConfigError(f"unknown option {name!r}; {hint} ({parser.prog} --help tells more)")
    return parser.parse_intermixed_args(arguments)


def require_new_file(path: Path, overwrite: bool, *, fix: str) -> None:
    """Return nothing.

    Errors: StorageError where `path` exists and must not be written over, or cannot be made.
    """
    if path.is_dir():
        raise StorageError(f"{path}: is a folder, but a file is to be written there. Fix: give the name of a file.")
    if path.exists() and not overwrite:
        raise StorageError(f"{path}: exists already, and nothing was changed. Fix: {fix}")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: the folder {path.parent} does not exist. Fix: make it, or choose another place.")
