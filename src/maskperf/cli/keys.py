"""`maskperf keys [WORD ...]`: the keys of the configuration, with their defaults, meaning and allowed values."""

import argparse
import re
import textwrap
from collections.abc import Sequence

from maskperf.cli.arguments import CommandParser, name_from
from maskperf.errors import EXIT_DONE, ConfigError
from maskperf.files import did_you_mean
from maskperf.overrides import FIELDS, NAMES_ELSEWHERE, describe_type, flatten, format_value
from maskperf.recipes import RECIPES

USAGE = "[WORD ...] [--recipe NAME]"
EXAMPLES = """A WORD is a part of a key or of its meaning, or a name that other programs use, such as lr or imgsz.

examples, to copy and paste:
  # all keys
  maskperf keys
  # the learning rate and its schedule
  maskperf keys lr warmup
  # what the recipe demo sets for the section optimizer
  maskperf keys optimizer. --recipe demo"""
COLUMNS = 80
INDENT = "    "


def add_options(parser: CommandParser) -> None:
    parser.add_argument("words", metavar="WORD", nargs="*", default=[], help="show the keys that have to do with it")
    help_text = "whose defaults (default: coco, the benchmark)"
    parser.add_argument("--recipe", metavar="NAME", type=name_from(RECIPES), default="coco", help=help_text)


def keys(options: argparse.Namespace) -> int:
    """Print the keys that any of the words is about, all of them without words."""
    found = list(dict.fromkeys(key for word in options.words for key in find_keys(word)))
    unknown = [word for word in options.words if not find_keys(word)]
    if unknown:
        hint = did_you_mean(unknown[0], [*FIELDS, *NAMES_ELSEWHERE])
        raise ConfigError(f"{unknown[0]!r}: no key is about that{hint}. Fix: maskperf keys shows all of them.")
    for line in key_lines(found or [key for key in FIELDS if key != "recipe"], options.recipe):
        print(line)
    return EXIT_DONE


def find_keys(word: str) -> list[str]:
    """Return the keys that a word names; where it names none, those that it is a part of, or their meaning."""
    name = word.lower().replace("-", "_")
    meant = NAMES_ELSEWHERE.get(name, ())
    named = [key for key in FIELDS if key in meant or name in (key, *re.split("[._]", key))]
    named = named or [key for key in FIELDS if name in key]
    return named or [key for key in FIELDS if name.replace("_", " ") in _meaning(key).lower()]


def key_lines(found: Sequence[str], recipe: str) -> list[str]:
    """Return some lines of at most `COLUMNS` characters for each key."""
    defaults, lines = flatten(RECIPES[recipe]()), []
    for key in found:
        names = [name for name, meant in NAMES_ELSEWHERE.items() if key in meant]
        text = "; ".join(filter(None, (_meaning(key), describe_type(FIELDS[key].type))))
        text += f"; elsewhere: {', '.join(names)}" if names else ""
        lines += [f"{key}={format_value(defaults[key])}"]
        lines += textwrap.wrap(text, COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def _meaning(key: str) -> str:
    return FIELDS[key].metadata.get("help", "")
