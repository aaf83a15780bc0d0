import pytest

from maskperf.run.loss_windows import WINDOW_STEPS, LossWindows


def test_a_window_has_the_means_of_its_steps():
    windows = LossWindows(world=2)
    for step in range(1, WINDOW_STEPS + 1):
        assert windows.take() == []
        windows.add(step, 1, {"box": float(step), "mask": 1.0}, learning_rate=0.01 * step, images=4, seconds=0.5)
    (window,) = windows.take()
    assert window.step == WINDOW_STEPS and window.epoch == 1
    assert window.losses == {"box": pytest.approx((WINDOW_STEPS + 1) / 2), "mask": pytest.approx(1.0)}
    assert window.learning_rate == pytest.approx(0.01 * WINDOW_STEPS)
    assert window.images_per_second == pytest.approx(16.0)
    assert windows.take() == []
