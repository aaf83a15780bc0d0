import pytest

from maskperf.data.coco.categories import in_training_categories, match_categories, with_written_ids

TRAINED = {1: "boat", 2: "cone", 3: "buoy"}


def match(found, *, trained=TRAINED, by_name=False):
    return match_categories(trained, found, source="train.json", file="val.json", by_name=by_name)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(
    ("found", "missing"),
    [
        ({1: "boat", 2: "cone"}, ["id 3 'buoy'"]),
        ({3: "buoy"}, ["id 1 'boat'", "id 2 'cone'"]),
        ({2: "cone"}, ["id 1 'boat'", "id 3 'buoy'"]),
        ({}, ["id 1 'boat'", "id 2 'cone'", "id 3 'buoy'"]),
        (dict(reversed(TRAINED.items())), []),
    ],
)
def test_fewer_categories_are_accepted_with_a_notice(found, missing, by_name):
    outcome = match(found, by_name=by_name)
    assert outcome.problems == () and outcome.training_ids == {identity: identity for identity in found}
    assert outcome.written_ids == {1: 1, 2: 2, 3: 3} and list(outcome.names) == [1, 2, 3]
    assert len(outcome.notices) == (len(missing) > 0)
    for notice in outcome.notices:
        assert notice.startswith(f"val.json: {len(missing)} of the 3 categories of train.json are not in this file (")
        assert all(text in notice for text in missing)


BY_NAME, ALIKE, OTHERWISE = "data.categories_by_name=true", "Write the names alike", "same ids and names"


@pytest.mark.parametrize(
    ("found", "pairs", "fix"),
    [
        ({1: "boat", 2: "buoy", 3: "cone"}, ["id 2 'buoy' is 'cone' there", "id 3 'cone' is 'buoy' there"], BY_NAME),
        ({0: "boat", 1: "cone", 2: "buoy"}, ["id 0 'boat' is not there", "id 2 'buoy' is 'cone' there"], BY_NAME),
        ({11: "boat", 12: "cone", 13: "buoy"}, ["id 11 'boat' is not there", "id 13 'buoy' is not there"], BY_NAME),
        ({1: "cone"}, ["id 1 'cone' is 'boat' there"], BY_NAME),
        ({1: "boat", 2: "pylon", 3: "buoy"}, ["id 2 'pylon' is 'cone' there"], OTHERWISE),
        ({1: "boat", 2: "cone", 3: "buoy", 4: "swan"}, ["id 4 'swan' is not there"], OTHERWISE),
        ({1: "Boat", 2: "pylon", 3: "buoy"}, ["id 1 'Boat' is 'boat' there"], OTHERWISE),
        ({1: "Boat", 2: "CONE", 3: "buoy "}, ["id 1 'Boat' is 'boat' there", "id 3 'buoy ' is 'buoy' there"], ALIKE),
        ({1: "Boat", 2: "cone", 3: "bu oy"}, ["id 1 'Boat' is 'boat' there", "id 3 'bu oy' is 'buoy' there"], ALIKE),
    ],
)
def test_other_names_of_the_same_ids_are_one_problem_with_the_pairs(found, pairs, fix):
    outcome = match(found)
    (problem,) = outcome.problems
    assert problem.file == "val.json" and problem.field == "categories[].name"
    assert all(pair in problem.message for pair in pairs)
    assert ("alone differ" in problem.message) is (fix == ALIKE)
    assert [text for text in (BY_NAME, ALIKE, OTHERWISE) if text in problem.fix] == [fix]
    assert not any("not in this file" in notice for notice in outcome.notices)


@pytest.mark.parametrize(
    ("found", "training_ids", "written_ids"),
    [
        ({1: "boat", 2: "buoy", 3: "cone"}, {1: 1, 2: 3, 3: 2}, {1: 1, 2: 3, 3: 2}),
        ({0: "boat", 1: "cone", 2: "buoy"}, {0: 1, 1: 2, 2: 3}, {1: 0, 2: 1, 3: 2}),
        ({7: "buoy", 8: "boat", 9: "cone"}, {7: 3, 8: 1, 9: 2}, {1: 8, 2: 9, 3: 7}),
        ({9: "cone"}, {9: 2}, {1: 1, 2: 9, 3: 3}),
        ({1: "cone", 2: "buoy"}, {1: 2, 2: 3}, {1: 4, 2: 1, 3: 2}),  # 1 is taken in the file
        ({1: "buoy"}, {1: 3}, {1: 4, 2: 2, 3: 1}),
        ({2: "boat", 9: "cone"}, {2: 1, 9: 2}, {1: 2, 2: 9, 3: 3}),
    ],
)
def test_by_name_the_ids_do_not_matter_and_each_category_is_written_with_an_id_of_its_own(
    found, training_ids, written_ids
):
    outcome = match(found, by_name=True)
    assert outcome.problems == () and outcome.training_ids == training_ids and outcome.written_ids == written_ids
    assert len(set(outcome.written_ids.values())) == 3
    assert any("have other ids than in train.json, matched by name" in notice for notice in outcome.notices)
    taken = [identity for identity in TRAINED if identity in found and identity not in training_ids.values()]
    assert sum("get the id" in notice for notice in outcome.notices) == len(taken)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({1: "boat", 2: "pylon", 3: "buoy"}, ["'pylon'"]),
        ({1: "Boat", 2: "cone", 3: "buoy"}, ["'Boat' (but 'boat')"]),
        ({5: "swan", 6: "duck"}, ["'swan'", "'duck'"]),
        ({1: "boat", 2: "cone", 3: "buoy", 4: "swan"}, ["'swan'"]),
        ({1: "cone ", 2: "boat"}, ["'cone ' (but 'cone')"]),
        ({1: ""}, ["''"]),
    ],
)
def test_by_name_an_unknown_name_is_one_problem(found, shown):
    (problem,) = match(found, by_name=True).problems
    assert "train.json does not have" in problem.message and all(name in problem.message for name in shown)


def test_long_lists_are_cut_after_their_count():
    trained = {identity: f"kind {identity}" for identity in range(1, 81)}
    (problem,) = match({identity: f"sort {identity}" for identity in trained}, trained=trained).problems
    assert "80 of 80 categories" in problem.message and "..." in problem.message and len(problem.message) < 700
    (notice,) = match({1: "kind 1"}, trained=trained).notices
    assert "79 of the 80 categories" in notice and len(notice) < 500


def test_ground_truth_and_results_change_their_ids_and_nothing_else():
    outcome = match({1: "cone", 2: "buoy"}, by_name=True)
    document = {
        "images": [{"id": 1}],
        "annotations": [{"id": 5, "category_id": 1, "bbox": [0, 0, 1, 1]}, {"id": 6, "category_id": 2}],
        "categories": [{"id": 1, "name": "cone"}, {"id": 2, "name": "buoy"}],
    }
    assert in_training_categories(document, outcome) == {
        "images": [{"id": 1}],
        "annotations": [{"id": 5, "category_id": 2, "bbox": [0, 0, 1, 1]}, {"id": 6, "category_id": 3}],
        "categories": [{"id": 1, "name": "boat"}, {"id": 2, "name": "cone"}, {"id": 3, "name": "buoy"}],
    }
    assert document["annotations"][0]["category_id"] == 1
    results = [{"image_id": 1, "category_id": identity, "score": 0.5} for identity in (1, 2, 3)]
    assert [entry["category_id"] for entry in with_written_ids(results, outcome)] == [4, 1, 2]
