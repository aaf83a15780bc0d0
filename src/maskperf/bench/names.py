"""The benchmarks by name. Nothing heavy is imported here, so that the help is shown at once."""

SUMMARIES = {
    "step": "one training step: losses, backward, update",
    "infer": "one batch of detections, up to the 28 x 28 masks",
    "roi_align": "pooling of 512 boxes (7x7) or 128 boxes (14x14) an image from four levels of 256 channels",
    "nms": "suppression per level after the RPN, and per class at the end",
    "mask_targets": "polygons or run lengths to 28 x 28 targets of 128 RoIs an image (the peer starts from bitmaps)",
    "loader": "JPEG and polygons to training batches, on one thread",
    "index": "reading annotations as large as those of train2017, the first time and later",
    "evaluation": "COCO's scores of 5,000 images with 100 detections; from detections of 200 images to their scores",
    "startup": "a fresh process to its help, and to the end of its first training step",
    "demo": "training of the recipe demo with all switches on, beside the plain path",
    "gpu": "everything that wants a GPU, in one go (needs CUDA)",
}
QUICK = ("roi_align", "nms", "mask_targets", "loader")
STARTUP, DEMO, GPU = "startup", "demo", "gpu"
