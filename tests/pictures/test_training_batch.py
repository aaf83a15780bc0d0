"""The images of a training batch: pixels, boxes, names and mask targets as the network has them."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_batches import batch_of, rectangle

from maskperf.pictures import drawing
from maskperf.pictures.training_batch import batch_entries

MEANS_BGR = (100.0, 110.0, 120.0)


@pytest.fixture
def panels(monkeypatch):
    """Collect what is drawn: pixels and overlays of each image."""
    seen, draw_panel = [], drawing.draw_panel
    monkeypatch.setattr(drawing, "draw_panel", lambda *panel: seen.append(panel[:2]) or draw_panel(*panel))
    return seen


def test_images_are_drawn_without_padding_in_true_colours_with_their_targets(panels):
    box = (10.0, 12.0, 49.0, 41.0)
    pixels = torch.zeros(1, 3, 64, 96)
    pixels[0, 0] = 50.0  # blue
    batch = batch_of(pixels, [[(list(box), 2, [rectangle(10, 12, 30, 42)])]], (60, 90), [5])
    (entry,) = batch_entries(batch, ("cat", "dog"), ("five.jpg",), MEANS_BGR)
    assert (entry.kind, entry.title, entry.caption) == ("batch", "five.jpg", "90 x 60 pixels, 1 object")
    assert Image.open(io.BytesIO(base64.b64decode(entry.jpeg_base64))).format == "JPEG"
    ((shown, (overlay,)),) = panels
    assert shown.shape == (60, 90, 3) and np.unique(shown.reshape(-1, 3), axis=0).tolist() == [[120, 110, 150]]
    assert overlay.label == "dog" and tuple(overlay.box) == (10, 12, 40, 30)
    rows, columns = np.nonzero(overlay.mask)
    assert abs(rows.min() - 12) <= 1 and abs(rows.max() - 41) <= 1
    assert abs(columns.min() - 10) <= 1 and abs(columns.max() - 29) <= 1  # the left half of its box


def test_no_more_than_eight_images_are_drawn_and_one_without_objects_too(panels):
    batch = batch_of(torch.zeros(10, 3, 64, 96), [[] for _ in range(10)], (60, 90), list(range(10)))
    entries = list(batch_entries(batch, ("cat",), [f"{n}.jpg" for n in range(10)], MEANS_BGR))
    assert len(entries) == len(panels) == 8 and entries[0].caption.endswith("0 objects")
