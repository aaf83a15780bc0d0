import pytest
import torch
from kernel_device import DEVICE, seeded

from maskperf.ops import ranking as plain
from maskperf.ops.kernels.ranking import SCORES_AT_A_TIME, best_anchors, best_mask

LEVELS = (SCORES_AT_A_TIME + 500, 1030, 64, 3, 1)


def random_scores(rows: int, count: int, kinds: int | None = None) -> torch.Tensor:
    """Return logits like those of a network, all different, or of so many different values."""
    generator = seeded(count)
    if kinds is None:
        return torch.stack([torch.randperm(count, generator=generator) for _ in range(rows)]) / count * 16 - 12
    return torch.randint(-kinds, 0, (rows, count), generator=generator) / 4


def first_best(scores: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best by a stable sort: of equal ones the first."""
    ranked, index = scores.sort(dim=1, descending=True, stable=True)
    return ranked[:, :limit], index[:, :limit]


@pytest.mark.parametrize("limit", [1, 2, 60, 1000, 1030])
def test_equals_the_reference_where_all_scores_are_different(limit):
    logits = random_scores(3, sum(LEVELS))
    found, index = (part.cpu() for part in best_anchors(logits.to(DEVICE), LEVELS, limit))
    scores, expected = plain.best_anchors(logits, LEVELS, limit)
    torch.testing.assert_close(found, scores, rtol=1e-6, atol=0)  # another device's exponential
    assert torch.equal(index, expected)
    assert index.dtype == torch.int64


@pytest.mark.parametrize("kinds", [1, 2, 30])
@pytest.mark.parametrize("limit", [1, 500, 1000])
def test_of_equal_scores_the_first_are_taken_in_their_order(kinds, limit):
    logits = random_scores(2, sum(LEVELS), kinds)
    found, index = (part.cpu() for part in best_anchors(logits.to(DEVICE), LEVELS, limit))
    for level, part in enumerate(logits.split(LEVELS, dim=1)):
        count = min(limit, part.shape[1])
        _, expected = first_best(part, count)
        assert torch.equal(index[:, level, :count], expected + sum(LEVELS[:level]))
        assert bool((found[:, level, :count] > 0).all() and (found[:, level, count:] == -1).all())
        assert not bool(index[:, level, count:].any())


def test_a_limit_above_all_counts_takes_everything():
    logits = random_scores(2, 9)
    found, index = best_anchors(logits.to(DEVICE), (5, 4), SCORES_AT_A_TIME + 3)
    assert index[0, 0, :5].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert index[1, 1, :4].sort().values.tolist() == [5, 6, 7, 8]
    assert bool((found[:, 0, 5:] == -1).all())
    assert bool((found[:, 1, 4:] == -1).all())


def test_nan_comes_first_as_with_the_reference():
    logits = random_scores(1, 20)
    logits[0, 7] = float("nan")
    found, index = best_anchors(logits.to(DEVICE), (20,), 4)
    scores, expected = plain.best_anchors(logits, (20,), 4)
    assert torch.equal(index.cpu(), expected)
    assert index[0, 0, 0] == 7
    assert found.isnan().tolist() == scores.isnan().tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize("quota", [1, 300, 5000, 9000, 20000])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_mask_of_the_best_equals_the_reference_where_all_scores_are_different(quota, groups):
    scores = random_scores(groups, 2 * SCORES_AT_A_TIME + 1000).sigmoid()
    scores[:, ::3] = -1.0
    found = best_mask(scores.to(DEVICE), quota).cpu()
    assert found.sum(dim=1).tolist() == [min(quota, int((scores[0] >= 0).sum()))] * groups
    assert torch.equal(found, plain.best_mask(scores, quota))


def test_a_mask_takes_the_first_of_equal_scores():
    scores = random_scores(2, SCORES_AT_A_TIME + 900, 6) + 2  # some below 0
    found = best_mask(scores.to(DEVICE), 3000).cpu()
    ranked, index = first_best(scores, 3000)
    assert torch.equal(found, torch.zeros_like(found).scatter(1, index, ranked >= 0))


def test_other_strides_are_read_right():
    logits = random_scores(1200, 3).T
    scores, index = plain.best_anchors(logits, (1000, 200), 30)
    found, places = best_anchors(logits.to(DEVICE), (1000, 200), 30)
    torch.testing.assert_close(found.cpu(), scores, rtol=1e-6, atol=0)
    ours = logits.gather(1, places.cpu().flatten(1)).sigmoid().view_as(scores)
    torch.testing.assert_close(ours, scores, rtol=1e-6, atol=0)


def test_no_images_and_nothing_wanted():
    scores, index = best_anchors(torch.zeros((0, 9), device=DEVICE), (5, 4), 3)
    assert scores.shape == index.shape == (0, 2, 3)
    assert not bool(best_mask(torch.ones((2, 5), device=DEVICE), 0).any())
