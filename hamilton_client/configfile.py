"""Read a YAML file into a pydantic model: unknown keys are refused with the nearest known name, the file and the line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hamilton_client.core.contracts import HuracanError

ENV_PREFIX = "HURACAN_"
NESTING = "__"
T = TypeVar("T", bound=BaseModel)


def load_config(model: type[T], paths: list[Path], environ: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> T:
    """Merge the YAML files, then `HURACAN_SECTION__KEY` variables for the model's sections, then validate.

    Raises HuracanError that names file, line, key and the nearest known key.
    """
    merged: dict[str, Any] = dict(extra or {})
    places: dict[tuple[str, ...], str] = {}
    for path in paths:
        merged |= _read(path, places)
    _apply_environment(merged, places, environ, set(model.model_fields))
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise HuracanError("\n".join(_explain(model, problem, places) for problem in error.errors())) from None


def _read(path: Path, places: dict[tuple[str, ...], str]) -> dict[str, Any]:
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise HuracanError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None
    except yaml.YAMLError as error:
        raise HuracanError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise HuracanError(f"{path}: must hold a mapping of sections, found {type(content).__name__}")
    _note_places(node, (), path, places)
    return content


def _note_places(node: yaml.Node | None, prefix: tuple[str, ...], path: Path, places: dict[tuple[str, ...], str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*prefix, str(key.value))
            places[here] = f"{path.name}:{key.start_mark.line + 1}"
            _note_places(value, here, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*prefix, str(index))] = f"{path.name}:{item.start_mark.line + 1}"
            _note_places(item, (*prefix, str(index)), path, places)


def _apply_environment(merged: dict[str, Any], places: dict[tuple[str, ...], str], environ: Mapping[str, str], sections: set[str]) -> None:
    for name, text in environ.items():
        keys = tuple(name.removeprefix(ENV_PREFIX).lower().split(NESTING))
        if not name.startswith(ENV_PREFIX) or (len(keys) == 1 and keys[0] not in sections):
            continue
        target = merged
        for key in keys[:-1]:
            child = target.get(key)
            target[key] = dict(child) if isinstance(child, dict) else {}
            target = target[key]
        target[keys[-1]] = yaml.safe_load(text)
        places[keys] = f"environment variable {name}"


def _explain(model: type[BaseModel], problem: Any, places: dict[tuple[str, ...], str]) -> str:
    loc = tuple(str(part) for part in problem["loc"])
    where = next((places[loc[:depth]] for depth in range(len(loc), 0, -1) if loc[:depth] in places), "configuration")
    key = ".".join(loc)
    if problem["type"] != "extra_forbidden":
        return f"{where}: {key}: {problem['msg']} (found {problem['input']!r})"
    close = difflib.get_close_matches(loc[-1], _known_keys(model, loc[:-1]), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{where}: unknown key {key!r}{hint}"


def _known_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Field names of the model that holds the key at `path`; list indices and map keys on the way are stepped over."""
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        current = inner or current
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in getattr(annotation, "__args__", ()) if (found := _model_in(argument))), None)
