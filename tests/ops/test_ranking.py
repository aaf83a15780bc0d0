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
    for image in range(3):
        start = 0
        for level, count in enumerate(LEVELS):
            places = range(start, start + count)
            best = sorted(places, key=lambda place, image=image: -float(logits[image, place]))[:limit]
            left = limit - len(best)
            assert index[image, level].tolist() == best + [0] * left
            wanted = torch.cat([logits[image, best].sigmoid(), torch.full((left,), -1.0)])
            torch.testing.assert_close(scores[image, level], wanted, rtol=1e-6, atol=0)
            start += count


def test_what_is_no_number_comes_first_and_stays_none():
    logits = random_logits(1)
    logits[0, 41] = float("nan")
    scores, index = best_anchors(logits, LEVELS, 2)
    assert index[0, 1, 0] == 41
    assert scores.isnan().nonzero().tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("quota", [0, 1, 4, 6, 100])
def test_a_mask_takes_the_best_of_each_group_but_none_below_zero(quota):
    scores = torch.tensor([[0.5, -1.0, 0.25, 0.75, 0.0, -1.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    kept = best_mask(scores, quota)
    for row, mask in zip(scores.tolist(), kept.tolist(), strict=True):
        best = sorted((score for score in row if score >= 0), reverse=True)[:quota]
        assert [score for score, is_kept in zip(row, mask, strict=True) if is_kept] == [s for s in row if s in best]


def test_a_mask_over_all_images_together_is_one_group():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, -1.0]])
    assert best_mask(scores.view(1, -1), 3).view(2, 3).tolist() == [[True, True, False], [True, False, False]]
