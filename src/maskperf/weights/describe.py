"""What a weight file is, in a few lines: family, classes, layers, numbers, and what of it can be used."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from maskperf.config import RunConfig
from maskperf.errors import DataError
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.families import COUNTER_SUFFIX, current_names, parts_of
from maskperf.model.weights import WeightFile, read_weight_file
from maskperf.weights.open import categories_of_file, config_of, empty_state, open_weights

NAMES_SHOWN = 4


def describe_weights(path: Path, *, conventions: str = "", names: Path | None = None) -> list[tuple[str, str]]:
    """Return pairs of a title and a text about the file; the last one says what it can be used for.

    Errors: DataError for a file that cannot be read, or is of no family.
    """
    file = read_weight_file(path)
    config, notices = config_of(file, conventions)
    rows = [*_numbers(file, path), *_network(file, config)]
    categories, more = categories_of_file(file, config.model.num_classes, names)
    shown = [repr(name) for name in categories.values()]
    listed = ", ".join([*shown[:NAMES_SHOWN], *["..."] * (len(shown) > NAMES_SHOWN)])
    rows.append(("labels", listed or "the file does not say"))
    rows += [("note", notice.removeprefix(f"{path}: ")) for notice in [*notices, *more]]
    try:
        open_weights(file, conventions=conventions, names=names)
    except DataError as error:
        parts = [part for part, share in _parts(file, config).items() if share == 1]
        usable = f"not as a whole; complete are: {', '.join(parts) or 'no parts'}"
        return [*rows, ("usable", usable), *(("missing", problem.message) for problem in error.problems)]
    return [*rows, ("usable", "as a whole: evaluate, predict, training, writing in another form (--to)")]


def _numbers(file: WeightFile, path: Path) -> Sequence[tuple[str, str]]:
    family = file.family
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in file.state.values())
    elements = sum(tensor.numel() for tensor in file.state.values())
    listed = ", ".join(f"{count} {name}" for name, count in types.most_common())
    written = "config" in file.metadata
    title = "maskperf" if written else family.title if family else "unknown"
    return [
        ("family", title),
        ("tensors", f"{listed}; {elements / 1e6:.1f} M numbers, file of {path.stat().st_size / 1e6:.1f} MB"),
    ]


def _network(file: WeightFile, config: RunConfig) -> Sequence[tuple[str, str]]:
    model, rules = config.model, CONVENTIONS[config.model.conventions]
    where = rules.background if "config" not in file.metadata else "first"
    pixels = "R, G, B of 0 to 1" if rules.is_rgb and rules.deviations_bgr else "B, G, R of 0 to 255"
    align = "unaligned, 2 samples" if rules.roi_align is None or not rules.roi_align.is_aligned else "aligned, adaptive"
    return [
        ("backbone", f"ResNet, blocks {','.join(map(str, model.stage_blocks))}, {model.stage_channels[-1]} channels"),
        ("classes", f"{model.num_classes} with the background, which is {where} in the file"),
        ("conventions", f"{model.conventions}: stride in the {rules.strided_kernel}x{rules.strided_kernel}, "
         f"boxes {'with' if rules.has_plus_one else 'without'} '+1', RoIAlign {align}, "
         f"batch norm epsilon {rules.batch_norm_epsilon:g}"),
        ("trained on", f"{pixels}; means {', '.join(f'{mean:g}' for mean in config.data.pixel_means_bgr)} (B, G, R)"),
        ("parts", ", ".join(f"{part} {share:.0%}" for part, share in _parts(file, config).items())),
    ]  # fmt: skip


def _parts(file: WeightFile, config: RunConfig) -> dict[str, float]:
    family = file.family
    assert family is not None, "config_of refuses files of no family"
    wanted = (name for name in empty_state(config.model) if not name.endswith(COUNTER_SUFFIX))  # a model works without
    return parts_of(current_names(file.state, family), family, wanted)
