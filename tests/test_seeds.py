import ast
from itertools import product
from pathlib import Path

import maskperf
from maskperf.seeds import derive_seed, entropy_seed

SOURCES = Path(maskperf.__file__).parent


def purposes_in_sources() -> list[str]:
    """Return the purpose of every call of derive_seed; of one that goes on with a value, what comes before it."""
    positions = {"derive_seed": 1, "_uniform": 3}  # of the purpose among the arguments
    purposes = [
        node.args[positions[name]]
        for path in sorted(SOURCES.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func).rpartition(".")[2]) in positions
    ]
    purposes = [node.values[0] if isinstance(node, ast.JoinedStr) else node for node in purposes]
    return [node.value for node in purposes if isinstance(node, ast.Constant)]


def test_the_same_key_gives_the_same_number_on_every_machine():
    assert derive_seed(5, "flip", 1, 42) == 615928725591937912
    assert derive_seed(0, "order", 3) == 3392809055847778662


def test_every_part_of_the_key_changes_the_number():
    parts = product((0, 1, 2, 2**62), ("flip", "order", "sample"), (0, 1, 2, 12), (0, 1, 2, 3, 23, 581929))
    keys = [(seed, purpose, epoch, image_id) for seed, purpose, epoch, image_id in parts]
    numbers = [derive_seed(*key) for key in keys]
    assert len(set(numbers)) == len(keys) == 288
    assert all(0 <= number < 2**62 for number in numbers)


def test_keys_do_not_run_into_each_other():
    assert derive_seed(1, "a", 1, 23) != derive_seed(1, "a", 12, 3)
    assert derive_seed(1, "a", 1) != derive_seed(1, "a", 1, 0)
    assert derive_seed(11, "a", 2) != derive_seed(1, "a", 12)


def test_each_purpose_is_used_in_one_place():
    purposes = purposes_in_sources()
    assert len(purposes) >= 5
    assert sorted(set(purposes)) == sorted(purposes)
    assert not [purpose for purpose in purposes if ":" in purpose]  # what parts a key in derive_seed


def test_a_seed_from_the_system_is_another_each_time():
    seeds = [entropy_seed() for _ in range(20)]
    assert len(set(seeds)) == 20
    assert all(0 <= seed <= 2**62 for seed in seeds)
