"""Which category of a validation file is which of the training: the ids decide and the names must agree, or by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskperf.data.coco.index import CocoIndex
from maskperf.errors import Problem

SHOWN = 10
MAY_SCORE = "only categories of the training can be evaluated"


@dataclass(frozen=True, kw_only=True)
class CategoryMatch:
    """The categories of a model, and those of a file that it is evaluated on."""

    names: Mapping[int, str]  # of the training, by id in the order of the labels
    training_ids: Mapping[int, int]  # by the ids of the file
    written_ids: Mapping[int, int]  # by the ids of the training: their ids in files of detections
    notices: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()  # with any of them, training_ids lacks categories of the file


def categories_of(index: CocoIndex) -> dict[int, str]:
    """Return the names of an index by id, in the order of the labels."""
    return dict(zip(index.category_ids.tolist(), index.category_names, strict=True))


def match_categories(
    trained: Mapping[int, str], found: Mapping[int, str], *, source: str, file: str, by_name: bool
) -> CategoryMatch:
    """Return how the categories `found` in `file` belong to the `trained` ones of `source`; both are names by id.

    A category that is not in the file has no ground truth and is noted; one that is not in the training is a problem,
    and so is another name of the same id. With `by_name` the names alone decide.
    """
    ids_by_name = {name: identity for identity, name in trained.items()}
    wanted_ids = {identity: ids_by_name.get(name) if by_name else identity for identity, name in found.items()}
    training_ids = {
        own: wanted for own, wanted in wanted_ids.items() if wanted is not None and trained.get(wanted) == found[own]
    }
    unmatched = [identity for identity in found if identity not in training_ids]
    written_ids = _written_ids(trained, found, training_ids)
    notices, problems = [], []
    if unmatched:
        explain = _unknown_names if by_name else _other_names
        values, message, fix = explain(trained, found, unmatched, source)
        problems = [
            Problem(
                file=file,
                where="the list of categories",
                field="categories[].name",
                value=_few(values),
                message=message,
                fix=fix,
            )
        ]
    moved = [f"{found[own]!r} is {own} here and {other} there" for own, other in training_ids.items() if own != other]
    if moved:
        notices.append(f"{len(moved)} categories have other ids than in {source}, matched by name: {_few(moved)}")
    missing = [identity for identity in trained if identity not in training_ids.values()]
    if missing and not problems:
        names = _few([_shown(identity, trained[identity]) for identity in missing])
        text = f"{len(missing)} of the {len(trained)} categories of {source} are not in this file ({names})"
        notices.append(f"{text}: they have no ground truth, and do not count in the means")
        notices += [
            f"detections of {trained[identity]!r} get the id {written_ids[identity]} in files, because {identity} is "
            f"{found[identity]!r} here"
            for identity in missing
            if written_ids[identity] != identity
        ]
    return CategoryMatch(
        names=dict(trained),
        training_ids=training_ids,
        written_ids=written_ids,
        notices=tuple(f"{file}: {notice}" for notice in notices),
        problems=tuple(problems),
    )


def in_training_categories(dataset: dict[str, Any], match: CategoryMatch) -> dict[str, Any]:
    """Return an instances JSON with the categories of the training in place of its own."""
    annotations = [
        {**entry, "category_id": match.training_ids[entry["category_id"]]} for entry in dataset["annotations"]
    ]
    categories = [{"id": identity, "name": name} for identity, name in match.names.items()]
    return {**dataset, "annotations": annotations, "categories": categories}


def with_written_ids(results: Iterable[dict[str, Any]], match: CategoryMatch) -> list[dict[str, Any]]:
    """Return results, which have the training's categories, with those ids that the validation file knows."""
    return [{**entry, "category_id": match.written_ids[entry["category_id"]]} for entry in results]


def _written_ids(
    trained: Mapping[int, str], found: Mapping[int, str], training_ids: Mapping[int, int]
) -> dict[int, int]:
    """Return the file's own id of each category; the training's where it has none; a free one where that is taken."""
    own = {training: identity for identity, training in training_ids.items()}
    free = max([*trained, *found], default=0) + 1
    written = {}
    for identity in trained:
        written[identity] = own.get(identity, identity)
        if identity not in own and identity in found:
            written[identity], free = free, free + 1
    return written


def _other_names(
    trained: Mapping[int, str], found: Mapping[int, str], other: list[int], source: str
) -> tuple[list[str], str, str]:
    """Return values, message and fix where ids are not in the training, or have other names there."""
    values = [_shown(identity, found[identity]) for identity in other]
    there = [f"is {trained[identity]!r} there" if identity in trained else "is not there" for identity in other]
    pairs = [f"{value} {what}" for value, what in zip(values, there, strict=True)]
    message = f"{len(other)} of {len(found)} categories are not those of {source}: {_few(pairs)}."
    if set(found.values()) <= set(trained.values()):
        message += " Every name is there, under another id."
        fix = "Set data.categories_by_name=true if the annotations mean these names; correct the list if they do not."
    elif all(_plain(found[identity]) == _plain(trained.get(identity, "")) for identity in other):
        message += " Letter case or spaces alone differ."
        fix = "Write the names alike in both files."
    else:
        fix = f"Give both files the same ids and names; {MAY_SCORE}."
    return values, message, fix


def _unknown_names(
    trained: Mapping[int, str], found: Mapping[int, str], unknown: list[int], source: str
) -> tuple[list[str], str, str]:
    """Return values, message and fix where names are not in the training."""
    similar = {_plain(name): name for name in trained.values()}
    names = [
        f"{found[identity]!r}" + (f" (but {similar[plain]!r})" if (plain := _plain(found[identity])) in similar else "")
        for identity in unknown
    ]
    message = f"With data.categories_by_name=true the names decide, and {source} does not have {_few(names)}."
    return [repr(found[identity]) for identity in unknown], message, f"Write the names as they are there; {MAY_SCORE}."


def _plain(name: str) -> str:
    """Return the name without letter case and spaces."""
    return "".join(name.split()).casefold()


def _shown(identity: int, name: str) -> str:
    return f"id {identity} {name!r}"


def _few(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:SHOWN], *(["..."] if len(texts) > SHOWN else [])])
