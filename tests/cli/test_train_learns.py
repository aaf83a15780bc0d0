"""`maskperf train` in one line, to a model that finds what it was shown: three kinds of objects, run-length masks."""

import pytest
from own_data import write_own_data
from train_own_data import train


@pytest.mark.slow
def test_a_small_data_set_is_learned(tmp_path):
    """With half of the images and a quarter of the steps of tests/train_own_data.py, so not as well as there."""
    data = write_own_data(tmp_path / "data", images=150, seed=1)
    assert train(data, tmp_path / "run", "seed=1", "epochs=12").box_ap > 0.2
