"""`maskperf run RECIPE [key=value ...]`: trains a recipe until its targets are met."""

import difflib
from dataclasses import replace

from maskperf.config import RunConfig
from maskperf.errors import EXIT_DONE, EXIT_TARGET_MISSED, ConfigError
from maskperf.overrides import validate, with_overrides
from maskperf.recipes import RECIPES

USAGE = "maskperf run RECIPE [key=value ...] [section.key=value ...]"


def run(arguments: list[str]) -> int:
    """Returns the exit code of a whole run: 0 when the targets are met, 6 when they are not."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(help_text())
        return EXIT_DONE
    config = resolve(arguments[0], arguments[1:])
    from maskperf.mlperf.run import run_benchmark  # torch is imported here, after every mistake in the words was found

    result = run_benchmark(config)
    return EXIT_DONE if result.status == "success" else EXIT_TARGET_MISSED


def help_text() -> str:
    lines = [f"usage: {USAGE}", "", "recipes:"]
    for name, recipe in RECIPES.items():
        lines.append(f"  {name:16s} {(recipe.__doc__ or 'A published reference convergence point.').splitlines()[0]}")
    return "\n".join([*lines, "", "All keys and their values are printed at the start of a run."])


def resolve(recipe: str, pairs: list[str]) -> RunConfig:
    """Returns the recipe with the user's values, checked.

    Own data (data.train_json given) brings its own categories and counts: unless said otherwise, the classes follow
    the file and the counts of COCO 2017 are not demanded.
    Errors: ConfigError for an unknown recipe or key, or a value that cannot be used.
    """
    if recipe not in RECIPES:
        nearest = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else "Mend: choose a recipe."
        raise ConfigError(f"recipe {recipe!r} does not exist. {hint} There are {', '.join(RECIPES)}.")
    config = with_overrides(RECIPES[recipe](), pairs)
    given = {pair.partition("=")[0] for pair in pairs}
    if "data.train_json" in given:
        if "model.num_classes" not in given:
            config = replace(config, model=replace(config.model, num_classes=0))
        if "data.check_counts" not in given:
            config = replace(config, data=replace(config.data, check_counts=False))
        if "data.generate" not in given:
            config = replace(config, data=replace(config.data, generate=False))
    validate(config)
    return config
