"""Read YAML files and the environment into a pydantic model; what is refused is refused with its key, file and line."""

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hamilton_client.core.contracts import HuracanError

ENV_PREFIX = "HURACAN_"
NESTING = "__"
T = TypeVar("T", bound=BaseModel)
Keys = tuple[str, ...]
Places = dict[Keys, str]  # where each key was given: "engine.yaml:12", or the environment variable


def load_config(model: type[T], paths: list[Path], environ: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> T:
    """Merge the YAML files, then `HURACAN_SECTION__KEY` variables for the model's sections, then validate.

    `extra` holds values that no file may give. A check over several sections begins its message with the key: `section.key: what`.
    Raises HuracanError that names file and line or variable, key, and the nearest known key.
    """
    merged: dict[str, Any] = {}
    places: Places = {}
    for path in paths:
        merged |= _read(path, places)
    for key in extra or {}:
        if (key,) in places:
            raise HuracanError(f"{places[key,]}: {key} comes from the environment, never from a file; remove it here")
    merged |= extra or {}
    _apply_environment(merged, places, environ, set(model.model_fields))
    fallback = " + ".join(path.name for path in paths) or "configuration"
    try:
        made = model.model_validate(merged)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelt key explains a missing one
        raise HuracanError("\n".join(_explain(model, problem, places, fallback) for problem in problems)) from None
    for keys in _not_finite(made.model_dump()):
        raise HuracanError(f"{_where(keys, places, fallback)}: {'.'.join(keys)}: must be a finite number")
    return made


def section_of(variable: str) -> str:
    """`training` for `HURACAN_TRAINING__MODE`; empty for a variable that is not ours."""
    return variable.removeprefix(ENV_PREFIX).lower().split(NESTING)[0] if variable.startswith(ENV_PREFIX) else ""


def _read(path: Path, places: Places) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise HuracanError(f"{path}: cannot be read ({error.strerror}); HURACAN_CONFIG names the folder that holds it") from None
    except UnicodeDecodeError as error:
        raise HuracanError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise HuracanError(f"{path}{_yaml_problem(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise HuracanError(f"{path}: must hold a mapping of sections, found {type(content).__name__}")
    _note_places(node, (), path.name, places)
    return content


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return f"{line}: is not valid YAML: {getattr(error, 'problem', None) or error}"


def _note_places(node: yaml.Node | None, prefix: Keys, file: str, places: Places) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, place = (*prefix, str(key.value)), f"{file}:{key.start_mark.line + 1}"
            if here in places:
                raise HuracanError(f"{place}: {'.'.join(here)} is given twice, first in {places[here]}; remove one")
            places[here] = place
            _note_places(value, here, file, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*prefix, str(index))] = f"{file}:{item.start_mark.line + 1}"
            _note_places(item, (*prefix, str(index)), file, places)


def _apply_environment(merged: dict[str, Any], places: Places, environ: Mapping[str, str], sections: set[str]) -> None:
    for name, text in sorted(environ.items()):  # a section before its keys
        section = section_of(name)
        if not section or (NESTING not in name and section not in sections):
            continue
        place = f"environment variable {name}"
        target, keys = merged, Keys()
        *parents, last = name.removeprefix(ENV_PREFIX).lower().split(NESTING)
        for part in parents:
            keys = (*keys, _as_spelt(part, target))
            if not isinstance(target.get(keys[-1]), dict):
                target[keys[-1]], places[keys] = {}, place
            target = target[keys[-1]]
        keys = (*keys, _as_spelt(last, target))
        try:
            target[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise HuracanError(f"{place}{_yaml_problem(error)}; quote the value") from None
        places[keys] = place


def _as_spelt(part: str, known: Mapping[str, Any]) -> str:
    """A key that is there in any case, because regimes are keys in capitals; else `part`."""
    return next((key for key in known if str(key).lower() == part), part)


def _explain(model: type[BaseModel], problem: Any, places: Places, fallback: str) -> str:
    keys = tuple(str(part) for part in problem["loc"] if part != "[key]")
    message, found = problem["msg"].removeprefix("Value error, "), problem["input"]
    if not keys:
        key, _, message = message.partition(": ")
        keys = tuple(key.split("."))
    where, key = _where(keys, places, fallback), ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = {name.lower(): name for name in _known_keys(model, keys[:-1])}
        close = difflib.get_close_matches(keys[-1].lower(), known, n=1, cutoff=0.5)
        return f"{where}: unknown key {key!r}" + (f"; did you mean {known[close[0]]!r}?" if close else "")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | None) and problem["type"] != "missing" else ""
    return f"{where}: {key}: {message}{shown}"


def _where(keys: Keys, places: Places, fallback: str) -> str:
    return next((places[keys[:depth]] for depth in range(len(keys), 0, -1) if keys[:depth] in places), fallback)


def _known_keys(model: type[BaseModel], path: Keys) -> list[str]:
    """Names of the fields of the model that holds the key at `path`; list indices and map keys on the way are stepped over."""
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        current = inner or current
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in getattr(annotation, "__args__", ()) if (found := _model_in(argument))), None)


def _not_finite(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    if isinstance(value, float) and not math.isfinite(value):
        yield keys
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    for key, item in items:
        yield from _not_finite(item, (*keys, str(key)))
