"""Which category of a validation file is which of the training: the ids decide and the names must agree, or by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskperf.data.coco.index import CocoIndex
from maskperf.errors import Problem

SHOWN = 10
THE_LIST = "the list of categories"


@dataclass(frozen=True, kw_only=True)
class CategoryMatch:
    """The categories of a model, and those of a file that it is judged on."""

    names: Mapping[int, str]  # of the training, by id in the order of the labels
    training_ids: Mapping[int, int]  # by the ids of the file
    written_ids: Mapping[int, int]  # by the ids of the training: what stands for them in files of detections
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
    if by_name:
        training_ids = {identity: ids_by_name[name] for identity, name in found.items() if name in ids_by_name}
        problems = _unknown_names(trained, found, source, file)
    else:
        training_ids = {identity: identity for identity, name in found.items() if trained.get(identity) == name}
        problems = _other_names(trained, found, source, file)
    missing = [identity for identity in trained if identity not in training_ids.values()]
    moved = {identity: other for identity, other in training_ids.items() if identity != other}
    notices = []
    if moved:
        pairs = [f"{found[identity]!r} is {identity} here and {other} there" for identity, other in moved.items()]
        notices.append(
            f"{file}: {len(moved)} categories have other ids than in {source}, matched by name: {_few(pairs)}"
        )
    if missing and not problems:
        names = _few([_shown(identity, trained[identity]) for identity in missing])
        text = f"{len(missing)} of the {len(trained)} categories of {source} are not in this file ({names})"
        notices.append(f"{file}: {text}: they have no ground truth, and do not count in the means")
    written_ids = _written_ids(trained, found, training_ids)
    for identity in missing if not problems else ():
        if written_ids[identity] != identity:
            text = f"detections of {trained[identity]!r} get the id {written_ids[identity]} in files, because"
            notices.append(f"{file}: {text} {identity} is {found[identity]!r} here")
    return CategoryMatch(
        names=dict(trained),
        training_ids=training_ids,
        written_ids=written_ids,
        notices=tuple(notices),
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


def _other_names(trained: Mapping[int, str], found: Mapping[int, str], source: str, file: str) -> list[Problem]:
    """Return one problem for all ids that the training lacks, or knows under other names."""
    other = [identity for identity in found if trained.get(identity) != found[identity]]
    if not other:
        return []
    ids_by_name = {name: identity for identity, name in trained.items()}
    pairs = [
        f"{_shown(identity, found[identity])} is {trained[identity]!r} there"
        if identity in trained
        else f"{_shown(identity, found[identity])} is not there"
        for identity in other
    ]
    problem = f"{len(other)} of {len(found)} categories are not those of {source}: {_few(pairs)}."
    if all(name in ids_by_name for name in found.values()):
        problem += " Every name is there, under another id."
        fix = "Set data.categories_by_name=true if the annotations mean these names; correct the list if they do not."
    elif all(_alike(found[identity], trained.get(identity, "")) for identity in other):
        problem += " Letter case or spaces alone differ."
        fix = "Write the names alike in both files."
    else:
        fix = "Give both files the same ids and names; only categories of the training can be judged."
    return [
        _problem(file, "categories[].name", [_shown(identity, found[identity]) for identity in other], problem, fix)
    ]


def _unknown_names(trained: Mapping[int, str], found: Mapping[int, str], source: str, file: str) -> list[Problem]:
    """Return one problem for all names that the training does not have."""
    unknown = [name for name in found.values() if name not in trained.values()]
    if not unknown:
        return []
    known = {name: next((other for other in trained.values() if _alike(name, other)), None) for name in unknown}
    names = [f"{name!r}" + (f" (but {other!r})" if other else "") for name, other in known.items()]
    problem = f"With data.categories_by_name=true the names decide, and {source} does not have {_few(names)}."
    fix = "Write the names as they are there; only categories of the training can be judged."
    return [_problem(file, "categories[].name", [repr(name) for name in unknown], problem, fix)]


def _problem(file: str, field: str, values: Sequence[str], problem: str, fix: str) -> Problem:
    return Problem(file=file, where=THE_LIST, field=field, value=_few(values), message=problem, fix=fix)


def _alike(name: str, other: str) -> bool:
    """Return whether two names differ in letter case and spaces alone."""
    return "".join(name.split()).casefold() == "".join(other.split()).casefold()


def _shown(identity: int, name: str) -> str:
    return f"id {identity} {name!r}"


def _few(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:SHOWN], *(["..."] if len(texts) > SHOWN else [])])
