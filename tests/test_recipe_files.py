"""`maskperf run my_recipe.py`: which function is taken, and every way in which a file cannot be used."""

from dataclasses import replace

import pytest

from maskperf.cli.run import resolve
from maskperf.errors import ConfigError
from maskperf.overrides import to_json_text
from maskperf.recipe_files import recipe_config
from maskperf.recipes import demo

HEAD = "from dataclasses import replace\nfrom maskperf import RECIPES, RunConfig\n"
MINE = "def mine() -> RunConfig:\n    return replace(RECIPES['demo'](), recipe='mine', seed=5)\n"
OTHER = "def other() -> 'RunConfig':\n    return replace(RECIPES['demo'](), recipe='other')\n"


def write(tmp_path, text, name="my_recipe.py"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_the_function_that_returns_a_configuration_is_found(tmp_path):
    helper = "def rate(batch):\n    return 0.1 * batch\n"
    config = resolve(write(tmp_path, HEAD + helper + MINE), ["optimizer.max_epochs=3"])
    assert (config.recipe, config.seed, config.optimizer.max_epochs) == ("mine", 5, 3)


def test_one_of_several_is_named_behind_a_colon(tmp_path):
    path = write(tmp_path, HEAD + MINE + OTHER)
    assert recipe_config(f"{path}:other").recipe == "other"
    with pytest.raises(ConfigError, match=r"2 recipes. Fix: name one: .*my_recipe.py:mine or .*my_recipe.py:other"):
        recipe_config(path)


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    write(tmp_path, "RATE = 0.25\n", name="beside_my_recipe.py")
    text = HEAD + "from beside_my_recipe import RATE\n" + MINE.replace("seed=5", "seed=int(RATE * 4)")
    assert recipe_config(write(tmp_path, text)).seed == 1


def test_the_configuration_of_a_run_is_a_recipe(tmp_path):
    """But for its folder, into which no other run may write."""
    path = write(tmp_path, to_json_text(replace(demo(), run_dir="runs/a")), name="config.json")
    assert recipe_config(path) == demo()


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("def broken(:\n", "", ("line 1", "SyntaxError")),
        (HEAD + "import no_such_module\n", "", ("line 3", "no_such_module")),
        (HEAD + "\nx = 1 / 0\n", "", ("line 4", "ZeroDivisionError")),
        ("x = 1\n", "", ("no function that returns a RunConfig", "def my_recipe")),
        (HEAD + MINE, ":mina", ("no function 'mina'", "mine")),
        (HEAD + MINE, ":", ("a name is missing",)),
        (HEAD + "def mine() -> RunConfig:\n    return 1\n", "", ("returned int",)),
        (HEAD + "def mine() -> RunConfig:\n    return RunConfig(recipe=1 / 0)\n", "", ("function mine", "line 4")),
        (HEAD + "def mine(size) -> RunConfig:\n    return RunConfig(recipe='a')\n", "", ("wants size",)),
        (HEAD + "def mine() -> RunConfig:\n    return RunConfig(recipe='a/b')\n", "", ("recipe='a/b'",)),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_line_and_fix(tmp_path, text, suffix, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        recipe_config(path + suffix)
    assert all(word in str(caught.value) for word in (path, "Fix: ", *words))


@pytest.mark.parametrize(("recipe", "words"), [("none.py", "none.py"), ("demp", "demo"), ("none.json", "none.json")])
def test_a_recipe_that_is_not_there_is_named(recipe, words):
    with pytest.raises(ConfigError, match=words):
        recipe_config(recipe)


def test_json_that_is_no_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no configuration of a run"):
        recipe_config(write(tmp_path, "[]", name="config.json"))
