"""Random weights of other families' models by formula, so that golden numbers need no file of weights.

Imports nothing but numpy: the environment of torchvision makes the golden numbers with it.
"""

import zlib

import numpy as np

# By the last module of a name; the rest of the convolutions keep the variance of what passes through a rectifier.
GAINS = {"cls_logits": 0.6, "bbox_pred": 0.1, "cls_score": 8.0, "mask_fcn_logits": 3.0}
LEVEL_GAINS = (0.4, 0.8, 2.2, 6.0)  # so that no level of the pyramid has all the proposals
SPARSE = ("roi_heads.box_head.fc7.bias", "roi_heads.box_head.5.bias")


def family_weight(name, shape):
    """Return a parameter or buffer of torchvision's Mask R-CNN, in float32, made from its name alone."""
    generator = np.random.default_rng(zlib.crc32(f"family:{name}".encode()))
    last, module = name.split(".")[-1], name.split(".")[-2]
    if last == "running_var":
        value = generator.uniform(0.8, 1.2, shape)
    elif last == "running_mean" or last == "bias":
        value = generator.normal(-0.8 if name in SPARSE else 0.0, 0.05, shape)
    elif last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    elif len(shape) == 1:  # the factor of a batch norm
        least, most = (0.3, 0.6) if name.startswith("backbone.body") else (0.8, 1.2)
        value = generator.uniform(least, most, shape) * (0.4 if ".bn3." in name else 1.0)
    else:
        gain = LEVEL_GAINS[int(name.split(".")[3])] if "layer_blocks" in name else GAINS.get(module, 1.0)
        value = generator.standard_normal(shape, np.float32) * gain * np.sqrt(2 / np.prod(shape[1:]))
    return np.asarray(value, np.float32)


def synthetic_image(number, height, width):
    """Return an RGB image of overlapping ellipses and noise, bytes (height, width, 3)."""
    generator = np.random.default_rng(number)
    rows, columns = np.mgrid[:height, :width]
    image = generator.uniform(0, 255, 3) * np.ones((height, width, 1))
    for _ in range(24):
        centre_y, centre_x = generator.uniform(0, height), generator.uniform(0, width)
        radius_y, radius_x = generator.uniform(4, height / 3), generator.uniform(4, width / 3)
        inside = ((rows - centre_y) / radius_y) ** 2 + ((columns - centre_x) / radius_x) ** 2 < 1
        stripes = 1 + 0.4 * np.sin(columns * generator.uniform(0.1, 1) + rows * generator.uniform(0.1, 1))
        image[inside] = (generator.uniform(0, 255, 3) * stripes[..., None])[inside]
    return np.clip(image + generator.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
