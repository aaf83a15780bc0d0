"""`maskperf export WEIGHTS --format onnx --out FILE`: the network for other runtimes, verified before it is kept."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maskperf.cli.arguments import SIZE_DIVISOR, CommandParser, padded_hw, require_existing, require_new_file, value_of
from maskperf.config import Count
from maskperf.errors import EXIT_DONE, ConfigError
from maskperf.files import replace_file

if TYPE_CHECKING:
    from maskperf.export.formats import Contract, Runner
    from maskperf.predict.model import Predictor

USAGE = "WEIGHTS --format FORMAT --out FILE [options]"
EXAMPLES = """The file takes images (n, height, width, 3), uint8 in the order R, G, B, resized as in training and put
top-left among padding, and sizes_hw (n, 2), int64: their size without padding. It gives boxes, scores, labels and masks
of a fixed number of detections, those with a score of 0 being none (docs/export.md). It is verified before it is kept,
on the validation data of the run where that is there, and refused where an AP differs by more than 0.001 (exit code 4).

examples, to copy and paste:
  # ONNX with standard operators, verified on the validation data of the run (pip install 'maskperf[export]')
  maskperf export runs/demo-1/model.safetensors --format onnx --out model.onnx
  # for wide images alone, any number at a time, verified on the first 500 images of COCO
  maskperf export model.safetensors --format onnx --out wide.onnx --size 800x1344 --dynamic-batch \\
      --verify /data/coco --images 500
  # for C++ without Python
  maskperf export model.safetensors --format torchscript --out model.pt"""
FORMATS = ("onnx", "torch-export", "torchscript")


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    parser.add_path("weights", "WEIGHTS", "model.safetensors of a run, or weights of another program")
    add("--format", choices=FORMATS, required=True, help=", ".join(FORMATS))
    parser.add_path("--out", "FILE", "the file to write", required=True)
    add("--size", metavar="HxW", type=padded_hw, help="of padded images (default: a square that fits every image)")
    add("--batch", metavar="N", type=value_of(Count), default=1, help="images at a time (default: 1)")
    add("--dynamic-batch", action="store_true", help="any number of images at a time; not for torchscript")
    parser.add_path("--verify", "FOLDER", "data set to verify on, with annotations/instances_val2017.json and val2017/")
    add("--images", metavar="N", type=value_of(Count), help="verify on the first N images alone")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--set", metavar="key=value", dest="pairs", action="append", default=[], help="change the configuration")
    add("--overwrite", action="store_true", help="write over a file that exists")


def export(options: argparse.Namespace) -> int:
    """Write the file and verify it; it only gets its name once it was found right."""
    require_existing("WEIGHTS", [options.weights])
    require_existing("--verify", [options.verify] if options.verify else [])
    require_new_file(options.out, overwrite=options.overwrite)
    if options.dynamic_batch and options.format == "torchscript":
        raise ConfigError("--dynamic-batch: a traced network has a fixed batch. Fix: give --batch N instead.")

    import torch

    from maskperf.export.formats import contract_of, foreign_operators, open_exported, write
    from maskperf.machine.threads import threads_of_process
    from maskperf.predict.model import load

    settings = [*options.pairs, "speed.precision=float32"]
    model = load(options.weights, device="cpu", recipe=options.recipe, settings=settings)
    torch.set_num_threads(threads_of_process(model.config.system.threads).count)
    side = -(-model.config.data.long_side // SIZE_DIVISOR) * SIZE_DIVISOR
    contract = contract_of(model, options.size or (side, side), 0 if options.dynamic_batch else options.batch)
    print("\n".join(model.notices), flush=True)

    def make(temporary: Path) -> None:
        write(model, contract, temporary, form=options.format)
        if options.format == "onnx" and (foreign := foreign_operators(temporary)):
            raise ConfigError(f"the graph has operators that are not standard: {', '.join(foreign)}")
        print("\n".join(_verify(options, model, open_exported(temporary, form=options.format), contract)), flush=True)

    replace_file(options.out, make)
    batch = "any number of images" if options.dynamic_batch else f"{options.batch} at a time"
    print(
        f"written: {options.out} ({options.format}, padded to {contract.size_hw[0]} x {contract.size_hw[1]}, {batch})"
    )
    return EXIT_DONE


def _verify(options: argparse.Namespace, model: "Predictor", run: "Runner", contract: "Contract") -> list[str]:
    """Return what was found; without a data set random images are compared."""
    from maskperf.data.coco.paths import split_paths
    from maskperf.export.verify import verify_on_data, verify_on_random_images
    from maskperf.predict.stored import read_weights_metadata
    from maskperf.predict.validation import open_validation, with_data
    from maskperf.run.console import Progress

    config = with_data(model.config, root=options.verify, val_json=None, val_images=None)
    if not options.verify and not all(path.exists() for path in split_paths(config.data, "val")):
        found = verify_on_random_images(model, run, contract)
        return ["verified on random images alone, as the data of the run is not here (--verify FOLDER)", found.line()]
    val, match = open_validation(config, read_weights_metadata(options.weights), is_test_set=False)
    if options.images and options.images < len(val.image_ids):
        val = val.without(list(range(options.images, len(val.image_ids))))
    with Progress("images") as progress:
        advance = partial(progress.advance, "verification")
        first, second, found = verify_on_data(model, run, contract, val, match, advance)
    return [
        f"verified on {len(val.image_ids)} images of {val.json_path}, padded as in the file",
        f"box AP  {first.box_ap:.4f} in PyTorch, {second.box_ap:.4f} in the file",
        f"mask AP {first.mask_ap:.4f} in PyTorch, {second.mask_ap:.4f} in the file",
        found.line(),
    ]
