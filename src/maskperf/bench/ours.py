"""The process of our own side: python -m maskperf.bench.ours"""

import torch

from maskperf.bench.ceiling import measure_ceiling
from maskperf.bench.ours_data import detected, index, loader, scored
from maskperf.bench.ours_demo import demo_chunk
from maskperf.bench.ours_model import infer, step
from maskperf.bench.ours_operators import mask_targets, nms, roi_align
from maskperf.bench.peers.serve import serve

BENCHMARKS = {
    "ceiling": measure_ceiling,
    "step": step,
    "infer": infer,
    "roi_align": roi_align,
    "nms": nms,
    "mask_targets": mask_targets,
    "loader": loader,
    "index": index,
    "scored": scored,
    "detected": detected,
    "demo_chunk": demo_chunk,
}


def main() -> None:
    """Return when the parent closes its end."""
    on_gpu = torch.cuda.is_available()
    serve(
        BENCHMARKS,
        synchronize=torch.cuda.synchronize if on_gpu else None,
        device_peak_bytes=torch.cuda.max_memory_allocated if on_gpu else None,
    )


if __name__ == "__main__":
    main()
