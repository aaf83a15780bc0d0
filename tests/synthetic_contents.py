"""Synthetic contents of a report: rich ones, and all the awkward ones."""

import base64
import io
import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import msgspec
from PIL import Image, ImageDraw

from maskperf.mlperf.published import BandEpoch, PublishedBand, RankedSystem
from maskperf.mlperf.rules import RuleResult
from maskperf.report.contents import (
    CategoryScore,
    EvaluationPoint,
    LossPoint,
    Phase,
    ReportContents,
    RunPage,
    SeriesScore,
    Verdict,
)
from maskperf.schema import GuardEvent, PictureEntry

BOX_TARGET, MASK_TARGET = 0.377, 0.339
TERMS = {"objectness": 0.05, "rpn_box": 0.07, "classification": 0.24, "box": 0.2, "mask": 0.28}
STEPS_AN_EPOCH = 1221
# These say which of a few known things something is; they are never free text.
CHOICES = ("state", "event", "kind", "jpeg_base64")
THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
)


@cache
def synthetic_jpeg(seed: int, width: int = 900, height: int = 360) -> str:
    """Return a small scene of two halves, as JPEG in base64."""
    draws = random.Random(seed)
    scene = Image.new("RGB", (width, height), tuple(draws.randint(150, 220) for _ in range(3)))
    draw = ImageDraw.Draw(scene)
    for _ in range(5):
        left, top = draws.randint(0, width // 2 - 130), draws.randint(0, height - 120)
        for shift in (0, width // 2):
            box = (left + shift, top, left + shift + draws.randint(60, 120), top + draws.randint(50, 110))
            draw.ellipse(box, fill=tuple(draws.randint(40, 200) for _ in range(3)), outline=(230, 57, 70), width=3)
    stream = io.BytesIO()
    scene.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()


def synthetic_evaluations(draws: random.Random, epochs: int, minutes: float) -> tuple[EvaluationPoint, ...]:
    """Return evaluations that rise, with a jump after the ninth epoch as a decay brings one."""
    box_aps = [0.31 * (1 - 0.55**epoch) + 0.06 * (epoch > 9) + draws.gauss(0, 0.003) for epoch in range(1, epochs + 1)]
    return tuple(
        EvaluationPoint(epoch=epoch, minutes=minutes * epoch / epochs, box_ap=box_ap, mask_ap=box_ap * 0.905)
        for epoch, box_ap in enumerate((max(0.01, box_ap) for box_ap in box_aps), start=1)
    )


def synthetic_loss(draws: random.Random, index: int, epochs: int, points: int) -> LossPoint:
    step, is_decayed = 1 + index * epochs * STEPS_AN_EPOCH // points, index > points * 0.7
    fall = 1 + 4 * 0.97**index - 0.12 * is_decayed
    terms = {name: float(level * fall * draws.uniform(0.93, 1.07)) for name, level in TERMS.items()}
    return LossPoint(
        step=step,
        total=sum(terms.values()),
        terms=terms,
        learning_rate=0.12 * min(1.0, step / 625) * (0.1 if is_decayed else 1.0),
        images_per_second=1480.0 + draws.gauss(0, 18),
        memory_gib=41.0 + min(4.0, index / 20),
    )


def synthetic_pictures(kind: str) -> tuple[PictureEntry, ...]:
    caption = "all 6 objects found" if kind == "best" else "2 of 7 objects found, 3 false ones"
    return tuple(
        PictureEntry(
            kind=kind,
            title=f"{100 + index:012d}.jpg",
            jpeg_base64=synthetic_jpeg(index + 4 * (kind == "worst")),
            caption=caption,
        )
        for index in range(4)
    )


def synthetic_rule(number: int) -> RuleResult:
    return RuleResult(
        rule=f"Rule {number} of the closed division",
        field=f"optimizer.field_{number}",
        value=str(number),
        allowed="as in the reference",
        kept=number != 3,
        source="training rules, table 10.2",
    )


def synthetic_run(name: str = "run_0", seed: int = 0, *, epochs: int = 14, minutes: float = 19.3, **changes) -> RunPage:
    """Return a run on eight devices that reached the targets; `changes` replace its fields."""
    draws = random.Random(seed)
    evaluations = synthetic_evaluations(draws, epochs, minutes)
    last = replace(evaluations[-1], box_ap=0.3779 + seed * 0.0001, mask_ap=0.3421)
    verdict = Verdict(
        state="reached",
        sentence=f"Both targets met in epoch {epochs}, after {minutes:.1f} minutes.",
        minutes=minutes,
        box_ap=last.box_ap,
        mask_ap=last.mask_ap,
        box_target=BOX_TARGET,
        mask_target=MASK_TARGET,
    )
    parts = {"training": 0.83, "waiting for data": 0.012, "evaluation": 0.109, "start": 0.021, "saving": 0.028}
    page = RunPage(
        name=name,
        path=f"runs/{name}",
        recipe="coco",
        notes=("open division: the recipe is not a closed one",),
        notices=("val.json: 2 images without an object are evaluated too",),
        verdict=verdict,
        evaluations=(*evaluations[:-1], last),
        losses=tuple(synthetic_loss(draws, index, epochs, 300) for index in range(300)),
        phases=tuple(Phase(name=part, seconds=share * minutes * 60) for part, share in parts.items()),
        categories=tuple(
            CategoryScore(name=thing, box_ap=draws.uniform(0.1, 0.7), mask_ap=draws.uniform(0.1, 0.6))
            for thing in THINGS
        ),
        pictures=(*synthetic_pictures("best"), *synthetic_pictures("worst")),
        guard=(GuardEvent(event="summary", step=None, epoch=None, text="17,094 steps watched, nothing noticed."),),
        rules=tuple(map(synthetic_rule, range(1, 9))),
        settings=(
            ("batch size", "96"),
            ("learning rate", "0.12"),
            ("seed", str(seed)),
            ("decay steps", "12000, 16000"),
        ),
        system=(("machine", "8 x NVIDIA H200"), ("processor", "2 x 48 cores"), ("torch", "2.13.0"), ("CUDA", "13.0")),
        images_per_second=1482.3,
        peak_memory=(("process", 12.4), ("device", 45.1)),
    )
    return replace(page, **changes)


def synthetic_place(name: str, accelerators: int, accelerator: str, minutes: float, *, is_this: bool) -> RankedSystem:
    return RankedSystem(
        name=name,
        accelerators=accelerators,
        batch_size=12 * accelerators,
        accelerator=accelerator,
        minutes=minutes,
        minutes_times_accelerators=minutes * accelerators,
        is_this=is_this,
    )


def synthetic_places(own_minutes: float = 19.3) -> tuple[RankedSystem, ...]:
    draws = random.Random(3)
    places = [synthetic_place("run_0", 8, "NVIDIA H200", own_minutes, is_this=True)]
    for index in range(23):
        count = (8, 8, 8, 16, 64, 384)[index % 6]
        minutes = draws.uniform(15, 42) * (8 / count) ** 0.7
        accelerator = "NVIDIA H100-SXM5-80GB" if index % 4 else "Intel Gaudi2"
        places.append(synthetic_place(f"Submitter {index + 1}: xa", count, accelerator, minutes, is_this=False))
    return tuple(sorted(places, key=lambda place: place.minutes))


def synthetic_band() -> PublishedBand:
    epochs = tuple(
        BandEpoch(
            epoch=point.epoch,
            box_mean=point.box_ap,
            box_deviation=0.006,
            mask_mean=point.mask_ap,
            mask_deviation=0.005,
            minutes_low=point.minutes * 0.9,
            minutes_high=point.minutes * 1.5,
            runs=35,
        )
        for point in synthetic_evaluations(random.Random(77), 15, 21.0)
    )
    return PublishedBand(batch_size=96, sentence="35 published runs of 7 systems.", epochs=epochs)


def contents_of(*runs: RunPage, **changes) -> ReportContents:
    contents = ReportContents(
        title="Mask R-CNN on COCO 2017: run_0",
        sentence=runs[0].verdict.sentence,
        runs=runs,
        compared=(),
        score=None,
        places=synthetic_places(),
        places_note="Compared by the time of one run; a score needs five.",
        band=synthetic_band(),
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
    numbers = dict.fromkeys(("minutes", "box_ap", "mask_ap", "box_target", "mask_target"))
    verdict = Verdict(state="unfinished", sentence="Stopped in its first epoch; no evaluation.", **numbers)
    empty = ("evaluations", "phases", "categories", "pictures", "guard", "rules", "notes", "settings", "system")
    fields = dict.fromkeys((*empty, "peak_memory", "losses"), ())
    run = synthetic_run(verdict=verdict, images_per_second=None, **fields)
    return contents_of(run, places=(), band=None, places_note="")


def aborted() -> ReportContents:
    run = synthetic_run(epochs=6, minutes=8.2)
    losses = [replace(point, total=None, terms=dict.fromkeys(TERMS)) for point in run.losses[241:]]
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
    run = replace(
        run,
        losses=run.losses[:3],
        categories=run.categories[:2],
        rules=run.rules[2:4],
        pictures=(run.pictures[0], run.pictures[-1]),
        guard=aborted().runs[0].guard,
    )
    score = SeriesScore(
        minutes=(19.3, None), kept=(True, False), score_minutes=None, scaling_factor=None, sentence="No score."
    )
    return contents_of(run, compared=(replace(run, name="other"),), score=score, places=synthetic_places()[:3])


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value` with every free text in it changed: names, titles, captions, notes, keys of terms."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_texts(entry, change) for entry in value)
    if isinstance(value, dict):
        return {change(key): entry for key, entry in value.items()}
    if isinstance(value, msgspec.Struct):
        names = [name for name in value.__struct_fields__ if name not in CHOICES]
        return msgspec.structs.replace(value, **{name: with_texts(getattr(value, name), change) for name in names})
    if is_dataclass(value):
        names = [field.name for field in fields(value) if field.name not in CHOICES]
        return replace(value, **{name: with_texts(getattr(value, name), change) for name in names})
    return value
