"""Synthetic contents of a report: rich ones, and all the awkward ones."""

import base64
import io
import random
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import cache
from typing import Any

import msgspec
from PIL import Image

from maskperf.mlperf.published import band_for, place_among
from maskperf.mlperf.rules import RuleResult
from maskperf.report.contents import CategoryScore, EvaluationPoint, ReportContents, RunPage, SeriesScore, Verdict
from maskperf.report.mistakes import KIND_TITLES
from maskperf.schema import Analysis, CalibrationBin, ErrorKind, GuardEvent, KindAnalysis, PictureEntry, StepLine

TERMS = {"objectness": 0.05, "rpn_box": 0.07, "classification": 0.24, "box": 0.2, "mask": 0.28}
STEPS_AN_EPOCH = 1221
PLACES = place_among(19.3, 8, name="run_0", accelerator="NVIDIA H200", batch_size=96)
# These say which of a few known things something is; they are never free text.
CHOICES = ("state", "event", "kind", "jpeg_base64")
THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
)


@cache
def synthetic_jpeg(seed: int) -> str:
    """Return a JPEG in base64."""
    stream = io.BytesIO()
    Image.linear_gradient("L").rotate(20 * seed).resize((900, 360)).save(stream, "JPEG")
    return base64.b64encode(stream.getvalue()).decode()


def synthetic_evaluations(draws: random.Random, epochs: int, minutes: float) -> tuple[EvaluationPoint, ...]:
    """Return evaluations that rise, with a jump after the ninth epoch as a decay brings one."""
    points = []
    for epoch in range(1, epochs + 1):
        box_ap = max(0.01, 0.31 * (1 - 0.55**epoch) + 0.06 * (epoch > 9) + draws.gauss(0, 0.003))
        scores = {"box_ap": box_ap, "mask_ap": box_ap * 0.905}
        points.append(EvaluationPoint(epoch=epoch, minutes=minutes * epoch / epochs, **scores))
    return tuple(points)


def synthetic_loss(draws: random.Random, index: int, epochs: int, points: int) -> StepLine:
    step, is_decayed = 1 + index * epochs * STEPS_AN_EPOCH // points, index > points * 0.7
    fall = 1 + 4 * 0.97**index - 0.12 * is_decayed
    terms = {name: float(level * fall * draws.uniform(0.93, 1.07)) for name, level in TERMS.items()}
    rate = 0.12 * min(1.0, step / 625) * (0.1 if is_decayed else 1.0)
    speeds = {"images_per_second": 1480.0 + draws.gauss(0, 18), "memory_gib": 41.0 + min(4.0, index / 20)}
    return StepLine(step=step, epoch=0, total=sum(terms.values()), **terms, learning_rate=rate, **speeds)


def synthetic_pictures(kind: str) -> tuple[PictureEntry, ...]:
    caption = "all 6 objects found" if kind == "best" else "2 of 7 objects found, 3 false ones"
    jpegs = {f"{100 + index:012d}.jpg": synthetic_jpeg(index + 4 * (kind == "worst")) for index in range(4)}
    return tuple(
        PictureEntry(kind=kind, title=title, jpeg_base64=jpeg, caption=caption) for title, jpeg in jpegs.items()
    )


def synthetic_analysis() -> Analysis:
    """Return an analysis of four classes, two of which are confused."""
    bins = (
        CalibrationBin(confidence=None, accuracy=None, count=0),
        CalibrationBin(confidence=0.7, accuracy=0.6, count=9),
    )
    kinds = zip(KIND_TITLES, range(6), strict=True)
    kind = KindAnalysis(
        precision_50=tuple(1 - index / 100 for index in range(101)),
        precision_75=tuple(0.5 - index / 200 for index in range(101)),
        errors=tuple(ErrorKind(kind=name, count=10 + number, ap_lost=number / 50) for name, number in kinds),
        calibration=bins,
        calibration_error=0.1,
    )
    confusions = ((0, 0, 9), (0, 1, 3), (1, 1, 5), (2, 4, 2), (4, 3, 1))
    return Analysis(
        boxes=kind, masks=kind, categories=THINGS[:4], confusions=confusions, least_score=0.5, least_iou=0.5
    )


def synthetic_run(name: str = "run_0", seed: int = 0, *, epochs: int = 14, minutes: float = 19.3, **changes) -> RunPage:
    """Return a run on eight devices that reached the targets; `changes` replace its fields."""
    draws = random.Random(seed)
    evaluations = synthetic_evaluations(draws, epochs, minutes)
    last = replace(evaluations[-1], box_ap=0.3779 + seed * 0.0001, mask_ap=0.3421)
    sentence = f"Both targets met in epoch {epochs}, after {minutes:.1f} minutes."
    scores = {"box_ap": last.box_ap, "mask_ap": last.mask_ap, "box_target": 0.377, "mask_target": 0.339}
    verdict = Verdict(state="reached", sentence=sentence, minutes=minutes, **scores)
    parts = {"training": 0.83, "waiting for data": 0.012, "evaluation": 0.109, "start": 0.021, "saving": 0.028}
    page = RunPage(
        name=name,
        recipe="coco",
        notes=("open division: the recipe is not a closed one",),
        notices=("val.json: 2 images without an object are evaluated too",),
        verdict=verdict,
        evaluations=(*evaluations[:-1], last),
        losses=tuple(synthetic_loss(draws, index, epochs, 300) for index in range(300)),
        phases={part: share * minutes * 60 for part, share in parts.items()},
        categories=tuple(
            CategoryScore(name=thing, box_ap=draws.uniform(0.1, 0.7), mask_ap=draws.uniform(0.1, 0.6))
            for thing in THINGS
        ),
        pictures=(*synthetic_pictures("best"), *synthetic_pictures("worst")),
        guard=(GuardEvent(event="summary", step=None, epoch=None, text="17,094 steps watched, nothing noticed."),),
        rules=tuple(
            RuleResult(
                f"Rule {n} of the closed division", f"optimizer.field_{n}", f"{n}", "as in the table", n != 3, ""
            )
            for n in range(1, 9)
        ),
        settings=(("batch size", "96"), ("seed", str(seed)), ("decay steps", "12000, 16000")),
        system=(("machine", "8 x NVIDIA H200"), ("processor", "2 x 48 cores"), ("torch", "2.13.0"), ("CUDA", "13.0")),
        images_per_second=1482.3,
        peak_memory=(("process", 12.4), ("device", 45.1)),
    )
    return replace(page, **changes)


def contents_of(*runs: RunPage, **changes) -> ReportContents:
    contents = ReportContents(
        title="Mask R-CNN on COCO 2017: run_0",
        sentence=runs[0].verdict.sentence,
        runs=runs,
        compared=(),
        score=None,
        places=PLACES,
        places_note="Compared by the time of one run; a score needs five.",
        band=band_for(96),
        written_at="2026-05-04 12:30:11 UTC",
    )
    return replace(contents, **changes)


def one_run() -> ReportContents:
    return contents_of(synthetic_run())


def five_runs_and_two_compared() -> ReportContents:
    minutes = (19.31, 19.02, 20.8, 19.5, 18.7)
    runs = [synthetic_run(f"run_{index}", index, minutes=taken) for index, taken in enumerate(minutes)]
    compared = (
        synthetic_run("result_0.txt", 11, minutes=24.1, rules=(), pictures=(), guard=()),
        synthetic_run("baseline-h100", 12, minutes=28.2),
    )
    score = SeriesScore(
        minutes=minutes,
        kept=(True, True, False, True, False),
        score_minutes=19.277,
        scaling_factor=1.0,
        sentence="Mean of three of five runs; the fastest and the slowest are left out.",
    )
    sentence = "All five runs met both targets; score 19.28 minutes."
    return contents_of(
        *runs, compared=compared, score=score, sentence=sentence, places_note="By the score of five runs."
    )


def without_evaluation() -> ReportContents:
    numbers = dict.fromkeys(("box_ap", "mask_ap", "box_target", "mask_target"))
    verdict = Verdict(state="unfinished", sentence="Stopped in its first epoch; no evaluation.", **numbers)
    fields = {"notices": ("a.json: 1 image left out",), "images_per_second": None}
    fields |= dict.fromkeys(("categories", "pictures", "settings"), ())
    run = RunPage(name="run_0", recipe="coco", verdict=verdict, **fields)
    return contents_of(run, places=(), band=None, places_note="")


def aborted() -> ReportContents:
    run = synthetic_run(epochs=6, minutes=8.2)
    lost = dict.fromkeys((*TERMS, "total"))
    losses = [msgspec.structs.replace(point, **lost) for point in run.losses[241:]]
    last = replace(run.evaluations[-1], box_ap=float("nan"), mask_ap=0.0)
    sentence = "Stopped in step 5,913: the loss was not a finite number."
    verdict = replace(run.verdict, state="aborted", sentence=sentence, box_ap=float("nan"), mask_ap=None)
    guard = (
        GuardEvent(event="collapse", step=5880, epoch=5, text="the loss is 6.1 times its median of 200 steps"),
        GuardEvent(event="non-finite", step=5913, epoch=5, text="loss_mask is nan; images 184613, 397133, 37777"),
        GuardEvent(event="plateau", step=None, epoch=5, text="mask AP has not risen for 3 epochs"),
        GuardEvent(event="summary", step=None, epoch=None, text="5,913 steps watched."),
    )
    evaluations, losses = (*run.evaluations[:-1], last), (*run.losses[:241], *losses)
    run = replace(run, verdict=verdict, evaluations=evaluations, losses=losses, guard=guard)
    return contents_of(run, places=(), places_note="No place: the run did not reach the targets.")


def small() -> ReportContents:
    """Return contents with one of everything, and a second run to compare with."""
    run = synthetic_run(epochs=2)
    few = {"losses": run.losses[:3], "categories": run.categories[:2], "rules": run.rules[2:4]}
    batch = (msgspec.structs.replace(run.pictures[1], kind=kind) for kind in ("sample", "batch"))
    few |= {"pictures": (run.pictures[0], run.pictures[-1], *batch), "guard": aborted().runs[0].guard}
    run = replace(
        run, **few, analysis=synthetic_analysis(), stats=(("AP", 0.4, 0.3), ("AP of large objects", None, None))
    )
    outcome = {"minutes": (19.3, None), "kept": (True, False), "score_minutes": None, "scaling_factor": None}
    score = SeriesScore(**outcome, sentence="No score.")
    return contents_of(run, compared=(replace(run, name="other"),), score=score, places=PLACES[:3])


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value` with every free text in it changed: names, titles, captions, notes, names of phases."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_texts(entry, change) for entry in value)
    if isinstance(value, dict):
        return {change(key): entry for key, entry in value.items()}
    if isinstance(value, msgspec.Struct) or is_dataclass(value):
        found = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else vars(value)
        changed = {name: with_texts(entry, change) for name, entry in found.items() if name not in CHOICES}
        return type(value)(**{**found, **changed})
    return value
