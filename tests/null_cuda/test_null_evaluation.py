"""What detection of full-size pictures launches, waits for and copies."""

MOST_LAUNCHES_AN_IMAGE = 26  # in batches of 16


def test_detection_launches_little_and_waits_once_a_batch(null_cuda):
    found = null_cuda.answer("null_evaluation.py")
    assert found["images"] == 16
    assert found["launches_an_image"] <= MOST_LAUNCHES_AN_IMAGE
    assert found["waits_a_batch"] == 1
    assert not any("pageable" in copy for copy in found["copies"])
    assert found["plans"] == 0 and found["violations"] == {}
