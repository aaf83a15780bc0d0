"""`maskperf weights FILE`: what a weight file is, whoever wrote it, and the same weights in another form."""

import argparse
from pathlib import Path
from typing import get_args

from maskperf.cli.arguments import CommandParser, name_from, path_argument, require_new_file
from maskperf.config import ConventionsName
from maskperf.errors import EXIT_DATA, EXIT_DONE, ConfigError

FORMS = ("maskperf", "torchvision", "detectron2")
USAGE = f"FILE [--to {'|'.join(FORMS)} OUT] [options]"
EXAMPLES = """Files of torchvision, detectron2, mmdetection, maskrcnn-benchmark (MLPerf's reference), Detectron and of
this program are recognised by the names of their tensors. No code from a file is run, none is written over.

examples, to copy and paste:
  maskperf weights model_final.pth
  # a file that carries its conventions, so that evaluate and predict find what the other program finds
  maskperf weights maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth --to maskperf model.safetensors
  maskperf weights my_detectron2.pth --names names.txt --to maskperf model.safetensors
  maskperf weights model.safetensors --to torchvision model.pth"""


def add_options(parser: CommandParser) -> None:
    parser.add_path("file", "FILE", "the weights")
    parser.add_argument("--to", nargs=2, metavar=("FORM", "OUT"), help=f"write them as {', '.join(FORMS)}")
    parser.add_path("--names", "FILE", "names of the labels: annotations, or a text with one name a line")
    help_text = "what the numbers mean, where the family has several ways"
    parser.add_argument("--conventions", metavar="NAME", type=name_from(get_args(ConventionsName)), help=help_text)


def weights(options: argparse.Namespace) -> int:
    """Describe one file, or write it in another form; return 3 where it is no whole model."""
    if options.to is None:
        from maskperf.weights.describe import describe_weights  # torch is imported here

        rows = describe_weights(options.file, conventions=options.conventions or "", names=options.names)
        width = max(len(title) for title, _ in rows)
        print("\n".join([str(options.file), *(f"  {title:<{width}}  {text}" for title, text in rows)]))
        return EXIT_DONE if rows[-1][0] == "usable" else EXIT_DATA
    form, target = options.to
    if form not in FORMS:
        raise ConfigError(f"--to {form}: unknown form. Fix: choose from {', '.join(FORMS)}.")
    path: Path = path_argument(target)
    require_new_file(path, overwrite=None)
    from maskperf.weights.open import open_weights
    from maskperf.weights.write import write_weights

    opened = open_weights(options.file, conventions=options.conventions or "", names=options.names)
    print("\n".join([*opened.notices, *write_weights(opened, form, path), f"written: {path} ({form})"]))
    return EXIT_DONE
