"""Training steps of the full size: what they launch, wait for, allocate and record.

The figures are counted on the null CUDA; nothing here was measured on a card.
"""

import pytest

MOST_GRAPH_NODES = 738  # of 16 images of 800 x 1344, bfloat16, 45 objects an image
MOST_LAUNCHES_BESIDE_THE_GRAPH = 97  # with PyTorch 2.11; 93 with 2.14
MOST_PEAK_ALLOCATED_GIB = 7.9
FULL_STEP = (16, 45)


@pytest.fixture(scope="module")
def replayed(null_cuda) -> dict:
    return null_cuda.answer("null_steps.py", *FULL_STEP, "captured")


@pytest.mark.parametrize("way", ["plain", "captured"])
@pytest.mark.parametrize("images", [2, 16])
def test_a_step_waits_for_nothing_and_breaks_no_rule(null_cuda, images, way):
    step = null_cuda.answer("null_steps.py", images, 45, way)
    assert step["is_captured"] == (way == "captured"), step["messages"]
    assert step["warm_up_violations"] == {} and step["violations"] == {}
    assert step["syncs"] == {} and step["plans"] == 0
    assert not any("pageable" in copy or copy.startswith("D2H") for copy in step["copies"])
    assert len(step["graph_nodes"]) == (way == "captured")


def test_a_replayed_step_has_few_nodes_and_launches(replayed):
    assert len(replayed["graph_nodes"]) == 1 and replayed["graph_nodes"][0] <= MOST_GRAPH_NODES
    assert replayed["launches"] <= MOST_LAUNCHES_BESIDE_THE_GRAPH
    assert replayed["allocations"] == {}


def test_a_step_fits_in_little_memory(replayed):
    assert replayed["peak_allocated_gib"] <= MOST_PEAK_ALLOCATED_GIB


def test_the_number_of_nodes_does_not_depend_on_the_number_of_objects(null_cuda):
    few, many = (null_cuda.answer("null_steps.py", 2, objects, "captured")["graph_nodes"] for objects in (8, 90))
    assert few == many
