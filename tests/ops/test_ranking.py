import pytest
import torch

from maskperf.ops.ranking import best_anchors, best_mask

LEVELS = (40, 12, 3)


def random_logits(images: int) -> torch.Tensor:
    """Return logits of which no two of an image are equal."""
    generator = torch.Generator().manual_seed(images)
    return torch.stack([torch.randperm(sum(LEVELS), generator=generator) for _ in range(images)]) / 8 - 4


@pytest.mark.parametrize("limit", [1, 5, 12, 40, 50])
def test_each_level_gives_its_best_anchors_by_falling_score(limit):
    logits = random_logits(3)
    scores, index = best_anchors(logits, LEVELS, limit)
    assert scores.shape == index.shape == (3, 3, limit)
    starts = (0, 40, 52)
    for image, level in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        of_level = logits[image, starts[level] : starts[level] + LEVELS[level]]
        best = of_level.argsort(descending=True)[:limit]
        unused = limit - len(best)
        assert index[image, level].tolist() == (best + starts[level]).tolist() + [0] * unused
        expected = torch.cat([of_level[best].sigmoid(), torch.full((unused,), -1.0)])
        torch.testing.assert_close(scores[image, level], expected, rtol=1e-6, atol=0)


def test_nan_comes_first_and_stays_nan():
    logits = random_logits(1)
    logits[0, 41] = float("nan")
    scores, index = best_anchors(logits, LEVELS, 2)
    assert index[0, 1, 0] == 41
    assert scores.isnan().nonzero().tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (0, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]),
        (1, [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]),
        (4, [[1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]),  # none below 0, which mark empty slots
        (100, [[1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]),
    ],
)
def test_a_mask_takes_the_best_of_each_group_but_none_below_zero(quota, expected):
    scores = torch.tensor([[0.5, -1.0, 0.25, 0.75, 0.0, -1.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    assert best_mask(scores, quota).int().tolist() == expected
