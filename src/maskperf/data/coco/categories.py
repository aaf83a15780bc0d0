"""Which category of a validation file is which of the training: the ids decide and the names must agree, or by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskperf.data.coco.index import CocoIndex
from maskperf.errors import Problem

Names = Mapping[int, str]  # of categories, by their ids
SHOWN = 10
MAY_SCORE = "only categories of the training can be evaluated"


@dataclass(frozen=True, kw_only=True)
class CategoryMatch:
    """The categories of a model, and those of a file that it is evaluated on."""

    names: Names  # of the training, in the order of the labels
    training_ids: Mapping[int, int]  # by the ids of the file
    written_ids: Mapping[int, int]  # by the ids of the training: their ids in files of detections
    notices: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()  # with any of them, training_ids lacks categories of the file


def categories_of(index: CocoIndex) -> dict[int, str]:
    """Return the names of an index by id, in the order of the labels."""
    return dict(zip(index.category_ids.tolist(), index.category_names, strict=True))


def match_categories(trained: Names, found: Names, *, source: str, file: str, by_name: bool) -> CategoryMatch:
    """Return how the categories `found` in `file` belong to the `trained` ones of `source`; both are names by id.

    A category that is not in the file has no ground truth and is noted; one that is not in the training is a problem,
    and so is another name of the same id. With `by_name` the names alone decide.
    """
    ids_by_name = {name: identity for identity, name in trained.items()}
    wanted_ids = {own: ids_by_name.get(name) if by_name else own for own, name in found.items()}
    training_ids = {
        own: wanted for own, wanted in wanted_ids.items() if wanted is not None and trained.get(wanted) == found[own]
    }
    unmatched = {own: name for own, name in found.items() if own not in training_ids}
    missing = {identity: name for identity, name in trained.items() if identity not in training_ids.values()}
    written_ids = _written_ids(trained, found, training_ids)
    notices = []
    moved = [f"{found[own]!r} is {own} here and {other} there" for own, other in training_ids.items() if own != other]
    if moved:
        notices.append(f"{len(moved)} categories have other ids than in {source}, matched by name: {_few(moved)}")
    if missing and not unmatched:
        text = f"{len(missing)} of the {len(trained)} categories of {source} are not in this file ({_few_of(missing)})"
        notices.append(f"{text}: they have no ground truth, and do not count in the means")
        notices += [
            f"detections of {name!r} get the id {written_ids[identity]} in files, because {identity} is "
            f"{found[identity]!r} here"
            for identity, name in missing.items()
            if written_ids[identity] != identity
        ]
    explain = _unknown_names if by_name else _other_names
    return CategoryMatch(
        names=dict(trained),
        training_ids=training_ids,
        written_ids=written_ids,
        notices=tuple(f"{file}: {notice}" for notice in notices),
        problems=(explain(trained, found, unmatched, source, file),) if unmatched else (),
    )


def in_training_categories(dataset: dict[str, Any], match: CategoryMatch) -> dict[str, Any]:
    """Return an instances JSON with the categories of the training in place of its own."""
    annotations = _with_ids(dataset["annotations"], match.training_ids)
    categories = [{"id": identity, "name": name} for identity, name in match.names.items()]
    return {**dataset, "annotations": annotations, "categories": categories}


def with_written_ids(results: Iterable[dict[str, Any]], match: CategoryMatch) -> list[dict[str, Any]]:
    """Return results, which have the training's categories, with those ids that the validation file knows."""
    return _with_ids(results, match.written_ids)


def _with_ids(entries: Iterable[dict[str, Any]], ids: Mapping[int, int]) -> list[dict[str, Any]]:
    return [{**entry, "category_id": ids[entry["category_id"]]} for entry in entries]


def _written_ids(trained: Names, found: Names, training_ids: Mapping[int, int]) -> dict[int, int]:
    """Return the file's own id of each category; the training's where it has none; a free one where that is taken."""
    own = {training: identity for identity, training in training_ids.items()}
    taken = [identity for identity in trained if identity not in own and identity in found]
    free = max([*trained, *found], default=0) + 1
    others = dict(zip(taken, range(free, free + len(taken)), strict=True))
    return {identity: own.get(identity, others.get(identity, identity)) for identity in trained}


def _other_names(trained: Names, found: Names, other: Names, source: str, file: str) -> Problem:
    """Return the problem of ids that are not in the training, or have other names there."""
    pairs = [
        f"id {identity} {name!r} is {repr(trained[identity]) if identity in trained else 'not'} there"
        for identity, name in other.items()
    ]
    message = f"{len(other)} of {len(found)} categories are not those of {source}: {_few(pairs)}."
    fix = f"Give both files the same ids and names; {MAY_SCORE}."
    if set(found.values()) <= set(trained.values()):
        message += " Every name is there, under another id."
        fix = "Set data.categories_by_name=true if the annotations mean these names; correct the list if they do not."
    elif all(_plain(name) == _plain(trained.get(identity, "")) for identity, name in other.items()):
        message += " Letter case or spaces alone differ."
        fix = "Write the names alike in both files."
    return _problem(file, _few_of(other), message, fix)


def _unknown_names(trained: Names, found: Names, unknown: Names, source: str, file: str) -> Problem:
    """Return the problem of names that are not in the training."""
    similar = {_plain(name): f" (but {name!r})" for name in trained.values()}
    names = [repr(name) + similar.get(_plain(name), "") for name in unknown.values()]
    message = f"With data.categories_by_name=true the names decide, and {source} does not have {_few(names)}."
    value = _few([repr(name) for name in unknown.values()])
    return _problem(file, value, message, f"Write the names as they are there; {MAY_SCORE}.")


def _problem(file: str, value: str, message: str, fix: str) -> Problem:
    where, field = "the list of categories", "categories[].name"
    return Problem(file=file, where=where, field=field, value=value, message=message, fix=fix)


def _plain(name: str) -> str:
    """Return the name without letter case and spaces."""
    return "".join(name.split()).casefold()


def _few_of(names: Names) -> str:
    return _few([f"id {identity} {name!r}" for identity, name in names.items()])


def _few(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:SHOWN], *["..."] * (len(texts) > SHOWN)])
