"""Write tests/golden/torchvision_v1.npz and _v2.npz: what torchvision's own Mask R-CNN detects, see tests/golden.

python3.11 -m venv /opt/tv; /opt/tv/bin/pip install torch==2.14.1 torchvision==0.29.1
PYTHONPATH=tests /opt/tv/bin/python tests/golden_torchvision.py
"""

from pathlib import Path

import numpy as np
import torch
from family_weights import family_weight, synthetic_image
from torchvision.models import detection

SIZES_HW = ((150, 200), (420, 300), (160, 640))
SHORT_SIDE, LONG_SIDE = 256, 400


def golden(make):
    options = {"min_size": SHORT_SIDE, "max_size": LONG_SIDE}
    model = make(weights=None, weights_backbone=None, num_classes=91, **options).eval()
    shapes = model.state_dict()
    state = {name: torch.from_numpy(family_weight(name, tuple(value.shape))) for name, value in shapes.items()}
    model.load_state_dict(state)
    sizes = [" ".join(map(str, value.shape)) for value in shapes.values()]
    found = {"names": np.array(list(shapes)), "shapes": np.array(sizes)}
    for number, size_hw in enumerate(SIZES_HW):
        pixels = torch.from_numpy(synthetic_image(number, *size_hw)).permute(2, 0, 1) / 255
        with torch.no_grad():
            result = model([pixels])[0]
        for key in ("boxes", "scores"):
            found[f"{key}{number}"] = result[key].numpy()
        found[f"labels{number}"] = result["labels"].numpy().astype(np.uint8)
        found[f"masks{number}"] = np.packbits(result["masks"][:, 0].numpy() > 0.5, axis=-1)
        sides = (result["boxes"][:, 2:] - result["boxes"][:, :2]).prod(1).sqrt()
        levels = [int((sides > side).sum()) for side in (0, 112, 224)]
        print(size_hw, "detections of the levels P2, P3, P4 and up:", levels, "scores", result["scores"][[0, -1]])
    return found


if __name__ == "__main__":
    folder = Path(__file__).parent / "golden"
    for name in ("v1", "v2"):
        make = detection.maskrcnn_resnet50_fpn if name == "v1" else detection.maskrcnn_resnet50_fpn_v2
        np.savez_compressed(folder / f"torchvision_{name}.npz", **golden(make))
