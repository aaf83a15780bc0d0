"""`maskperf train DATA [key=value ...]`: an own data set to a trained model, in one line."""

import argparse

from maskperf.cli.arguments import CommandParser
from maskperf.cli.run import exit_code_of

MODELS = ("small", "r50")
USAGE = "DATA [--val PATH] [--test PATH] [--weights FILE | --backbone FILE | --model NAME] [key=value ...]"
EXAMPLES = """examples, to copy and paste:
  # a folder in the layout of COCO, a Roboflow export, or images/ with one JSON
  maskperf train my_data
  # from trained weights, in 20 epochs; other classes get predictors of their own
  maskperf train my_data --weights model.safetensors epochs=20
  # from Detectron's backbone, in about half an hour
  maskperf train my_data --backbone R-50.pkl minutes=30
  # validation and test data that are elsewhere
  maskperf train train.json --val other/val.json --test other/test
  # averages of weights are evaluated; five evaluations without a better one end the run
  maskperf train my_data optimizer.average_decay=0.998 evaluation.patience=5

short names:
  epochs=N      optimizer.max_epochs; default: what the size of the data set asks for
  minutes=M     as many epochs as fit; a few steps are measured first, and the plan is not changed afterwards
  batch=N       optimizer.batch_size; batch=auto measures how many images fit into memory
  lr=X          optimizer.learning_rate; default: follows the batch
  processes=N   N processes of this machine, one GPU for each
  resume=auto   go on with the newest interrupted training on DATA, or of run_dir, or else start one;
                resume=FOLDER: with that one

All other keys are those of `maskperf run --help`. The result is the last and the best weights, a report,
and the configuration: `maskperf run FOLDER/config.json` repeats the run."""


def add_options(parser: CommandParser) -> None:
    add, add_path = parser.add_argument, parser.add_path
    add_path("data", "DATA", "folder of a data set, or an annotation file in COCO's format")
    add("settings", metavar="key=value", nargs="*", default=[], help="change a value of the configuration")
    add_path("--val", "PATH", "validation data: annotation file or folder; default: found in DATA, or a fifth of it")
    add_path("--test", "PATH", "data to evaluate the best weights on at the end: annotation file or folder")
    add_path("--weights", "FILE", "start from a whole model: model.safetensors of a run, or weights of another program")
    add_path("--backbone", "FILE", "start from a backbone: Detectron's R-50.pkl, or its .safetensors")
    add("--model", choices=MODELS, help="without --weights: default r50 with a backbone, else small")


def train(options: argparse.Namespace) -> int:
    """Return 0, or 6 where targets were asked for and missed."""
    from maskperf.cli.train_data import prepare_training

    prepared = prepare_training(options)
    return prepared.on_processes() if prepared.processes > 1 else exit_code_of(prepared.here())
