"""How options are read, everywhere: strictly, with one-line errors, and with paths relative to the plan.

Every set of options is a frozen pydantic model that forbids unknown fields. `validated` turns what a user
wrote into such a model or into one line that names the place, the field and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo

from leaven.errors import UsageError, nearest

Model = TypeVar("Model", bound=BaseModel)


def _anchor(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None else base / path


# A path in a plan: relative ones start at the plan file's folder, not at the current directory.
PlanPath = Annotated[Path, AfterValidator(_anchor)]


def _anchor_location(location: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base")
    if base is None or "://" in location or info.data.get("format") == "hf":
        return location
    return str(base / Path(location).expanduser())


# The same for a string that may also be a URL (``s3://...``) or, beside ``format: hf``, a dataset's name.
PlanLocation = Annotated[str, AfterValidator(_anchor_location)]


def _anchor_if_there(name: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base")
    return name if base is None or not (base / name).exists() else str(base / name)


# The same for a string that may also be a name on a hub: a path where something lies there, else a name.
PlanName = Annotated[str, AfterValidator(_anchor_if_there)]


def one_item(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    """(name, options) of a list item in a plan, which is a name or ``{name: options}``.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
        if options is None or isinstance(options, Mapping):
            return str(name), dict(options or {})
        raise UsageError(f"{where}: {name}: options must be 'name: value' pairs, not {options!r:.80}")
    raise UsageError(f"{where}: an item must be a name or one 'name: options', not {item!r:.80}")


def validated(model: type[Model], value: Any, where: str, base: Path | None = None) -> Model:
    """`value` as a `model`, or one line that names the place, the field and the fix.

    Args:
        where: the file and the place in it, for the error.
        base: folder that relative paths start from; None leaves them as they are.

    Raises:
        UsageError: unknown field (nearest name suggested), missing field, or a bad value.
    """
    try:
        return model.model_validate({} if value is None else value, context={"base": base})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, first["loc"][:-1])
            raise UsageError(
                f"{where}: unknown option {field!r}; {nearest(str(first['loc'][-1]), known)}"
            ) from error
        place = f"{where}: {field}" if field else where
        given = "" if first["type"] == "missing" else f", not {first['input']!r:.80}"
        raise UsageError(f"{place}: {first['msg'][0].lower() + first['msg'][1:]}{given}") from error


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """Field names that are known at `place` inside `model`; of all members where that is a union."""
    candidates = [model]
    for name in map(str, place):
        inside = [
            nested
            for candidate in candidates
            if name in candidate.model_fields
            for nested in _models_in(candidate.model_fields[name].annotation)
        ]
        # Otherwise `name` is the tag of a union's member, a list index or a mapping's key.
        tagged = [
            c for c in candidates if any(name in get_args(f.annotation) for f in c.model_fields.values())
        ]
        candidates = inside or tagged or candidates
    return {name for candidate in candidates for name in candidate.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
