"""Files of other runtimes: ONNX, torch.export and TorchScript, written and opened again."""

import inspect
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskperf.errors import ConfigError
from maskperf.export.network import PlainNetwork, exported_survivors, needs_onnx, survivors
from maskperf.predict.extras import need
from maskperf.predict.model import Predictor

OPSET = 20
INPUTS, OUTPUTS = ("images", "sizes_hw"), ("boxes", "scores", "labels", "masks")
METADATA_KEY = "maskperf"
LARGEST_BATCH = 1024
INSTALL = "'maskperf[export]'"
Runner = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]  # images and sizes_hw to the four outputs


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a user of an exported file has to know; stored in the file as JSON."""

    size_hw: tuple[int, int]  # of the padded images
    batch: int  # images at a time; 0: any number
    short_side: int  # an image is resized to this shorter side,
    long_side: int  # unless its longer side would exceed this
    category_ids: list[int]
    category_names: list[str]
    score_threshold: float
    inclusive_corners: bool  # a box is x2 - x1 + 1 pixels wide, or x2 - x1


def contract_of(model: Predictor, size_hw: tuple[int, int], batch: int) -> Contract:
    data = model.config.data
    return Contract(
        size_hw=size_hw,
        batch=batch,
        short_side=data.short_side,
        long_side=data.long_side,
        category_ids=list(model.categories),
        category_names=list(model.categories.values()),
        score_threshold=model.config.model.score_threshold,
        inclusive_corners=model.network.conventions.has_plus_one,
    )


def write(model: Predictor, contract: Contract, path: Path, *, form: str) -> None:
    """Write the network in one of the formats; the model must be on the CPU.

    Errors: ConfigError where a package is missing, or the format lacks an operator of the weights' conventions.
    """
    if form != "onnx" and needs_onnx(model.network.conventions.roi_align):
        text = f"the conventions {model.config.model.conventions} sample a box by its size, which has no fixed shape"
        raise ConfigError(f"--format {form}: {text}. Fix: --format onnx, which has an operator for it.")
    if form == "onnx":
        need("onnxscript", purpose="ONNX", install=INSTALL)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # each operator of torchvision that it cannot find
    loop: Any = exported_survivors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about its own exporters
        if form == "torchscript":
            loop = torch.jit.script(inspect.unwrap(survivors))  # its source, whatever a test wraps it in
        network = PlainNetwork(model.network, model.config.data, contract.size_hw, contract.category_ids, loop).eval()
        images = torch.zeros((contract.batch or 2, *contract.size_hw, 3), dtype=torch.uint8)
        sizes_hw = torch.tensor([contract.size_hw] * len(images))
        rule = {0: torch.export.Dim("images", min=1, max=LARGEST_BATCH)} if contract.batch == 0 else None
        shapes = (rule, rule) if rule else None
        text = json.dumps(asdict(contract))
        with torch.no_grad():
            if form == "torchscript":
                traced = torch.jit.trace(network, (images, sizes_hw), check_trace=False)
                torch.jit.save(traced, str(path), _extra_files={METADATA_KEY: text})
                return
            if form == "torch-export":
                program = torch.export.export(network, (images, sizes_hw), dynamic_shapes=shapes)
                torch.export.save(program, str(path), extra_files={METADATA_KEY: text})
                return
            names: Any = {"input_names": INPUTS, "output_names": OUTPUTS, "opset_version": OPSET, "verbose": False}
            made = torch.onnx.export(network, (images, sizes_hw), dynamic_shapes=shapes, dynamo=True, **names)
    assert made is not None
    made.model.metadata_props[METADATA_KEY] = text
    made.save(str(path))


def foreign_operators(path: Path) -> list[str]:
    """Return the operators of an ONNX file that are not of the standard, loops included."""
    onnx = need("onnx", purpose="ONNX", install=INSTALL)
    found: set[str] = set()

    def look(graph: Any) -> None:
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                found.add(f"{node.domain}::{node.op_type}")
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    look(attribute.g)

    look(onnx.load(str(path)).graph)
    return sorted(found)


def open_exported(path: Path, *, form: str) -> Runner:
    """Return a function that runs an exported file on the CPU.

    Errors: ConfigError where onnxruntime is not installed.
    """
    if form == "onnx":
        runtime = need("onnxruntime", purpose="running ONNX", install=INSTALL)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images, sizes_hw: session.run(list(OUTPUTS), dict(zip(INPUTS, (images, sizes_hw), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(str(path)).module()

    def run(images: np.ndarray, sizes_hw: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = loaded(torch.from_numpy(images), torch.from_numpy(sizes_hw))
        return [output.numpy() for output in outputs]

    return run
