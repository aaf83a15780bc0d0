"""maskperf's command line on the null CUDA: python null_command_line.py ARGUMENTS, as of `maskperf`.

What is read back from a device that computes nothing is no result. Here is what may not be decided by such numbers:
the guards of a run take no notice, no step lacks places for masks, every picture has the same few detections, and what
processes tell each other as Python objects travels over the host, as its way to the device and back needs kernels. The
last line on stderr is JSON: what this process did on its device.
"""

import json
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from null_device import recording, used_bytes

from maskperf.cli.main import main
from maskperf.engine import under_way
from maskperf.evaluation import predict
from maskperf.run import recorder
from maskperf.structures import Detections

BOX, SCORE, LABEL, MASK_PROBABILITY = (1.0, 1.0, 40.0, 40.0), 0.5, 1, 0.7
MOST_READ = 100  # places of detections, which is what a picture has room for


def ignore_numbers() -> None:
    """Has nothing decided by numbers of the device."""
    recorder.StepRecorder._check_dropped_masks = lambda *_: None
    recorder.StepRecorder._check_finite = lambda *_: None
    recorder.StepRecorder._check_collapse = lambda *_: None
    under_way.begin_copy_to_host = lambda count: (torch.zeros((), dtype=torch.int64), None)
    code, to_int = predict._code, torch.Tensor.__int__
    predict._code = lambda detections, *rest: code(_same_everywhere(detections), *rest)
    torch.Tensor.__int__ = lambda tensor: min(max(to_int(tensor), 0), MOST_READ) if tensor.is_cuda else to_int(tensor)


def _same_everywhere(detections: Detections) -> Detections:
    return replace(
        detections,
        boxes=torch.tensor(BOX).expand_as(detections.boxes).contiguous(),
        scores=torch.full_like(detections.scores, SCORE),
        labels=torch.full_like(detections.labels, LABEL),
        valid=torch.ones_like(detections.valid),
        mask_probs=torch.full_like(detections.mask_probs, MASK_PROBABILITY),
    )


def tell_over_the_host() -> None:
    """Has Python objects go over Gloo; tensors of the device still go over NCCL."""
    begin, share = dist.init_process_group, dist.broadcast_object_list
    dist.init_process_group = lambda backend, **options: begin(f"cpu:gloo,cuda:{backend}", **options)
    dist.broadcast_object_list = lambda box, src, device: share(box, src=src, device=torch.device("cpu"))


if __name__ == "__main__":
    ignore_numbers()
    tell_over_the_host()
    with recording() as calls:
        code = main()
    done = {
        "rank": int(os.environ.get("RANK", "0")),
        "devices": [device for device in range(torch.cuda.device_count()) if used_bytes(device)],
        "violations": calls.named("violation"),
        "captures": calls.named("capture").get("begin", 0),
        "graphs": len(calls.graph_nodes()),
        "collectives": calls.named("collective"),
    }
    print(json.dumps(done), file=sys.stderr)
    sys.exit(code)
