"""YAML read into models, each mistake told in one line that names file, field, value and mend; and written back."""

from __future__ import annotations

import os
import re
import tempfile
import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from splitgym.errors import SplitgymError, did_you_mean

_Model = TypeVar("_Model")

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_NOT_ONE_OF = {"literal_error": "expected", "union_tag_invalid": "expected_tags"}


def read_model(path: Path, shape: type[_Model], *, shown: str | None = None, base_key: str | None = None) -> _Model:
    """The YAML file at ``path`` as a ``shape``.

    Args:
        path: the file.
        shape: a pydantic model or a dataclass.
        shown: what messages call the file; its path by default.
        base_key: the field that names another file of the folder, whose content holds where this one says nothing.

    Raises:
        SplitgymError: if the file cannot be read or is no YAML (with the line), and for mistakes in it, one
            line each.
    """
    place = shown or str(path)
    content = _read_yaml(path, place)
    if base_key in content:
        content = _over_base(content, path, place, base_key)
    try:
        return TypeAdapter(shape).validate_python(content)
    except ValidationError as error:
        raise SplitgymError("\n".join(f"{place}: {line}" for line in problems(error, shape))) from None


def problems(error: ValidationError, shape: type) -> list[str]:
    """One line for each mistake: ``cluster.machines[1].hardware: unknown 'h1OO-80gb'; did you mean …?``."""
    mistakes = error.errors(include_url=False)
    lines = {mistake["loc"]: _problem(dict(mistake), shape) for mistake in mistakes}

    def follows_from_another(mistake: ErrorDetails) -> bool:
        """A tuple is too short when its items are wrong; a field is missing whose name is misspelt beside it."""
        place = mistake["loc"]
        if mistake["type"] == "too_short":
            return any(other[: len(place)] == place and other != place for other in lines)
        meant = f"did you mean {str(place[-1:] and place[-1])!r}?"
        beside = (line for other, line in lines.items() if other[:-1] == place[:-1])
        return mistake["type"].startswith("missing") and any(line.endswith(meant) for line in beside)

    return [lines[mistake["loc"]] for mistake in mistakes if not follows_from_another(mistake)]


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all.

    Raises:
        SplitgymError: if the file cannot be written.
    """
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o644)
        os.replace(temporary, path)  # noqa: PTH105 the word people look for
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise SplitgymError(f"{path}: cannot be written ({reason}); choose a path in a folder you can write") from None


def _over_base(content: dict[str, Any], path: Path, place: str, base_key: str) -> dict[str, Any]:
    """``content`` over that of the file which it names; mappings are merged, everything else replaced."""
    name = content[base_key]
    base_path = path.parent / f"{name}.yaml"
    if not isinstance(name, str) or not base_path.is_file():
        names = [other.stem for other in path.parent.glob("*.yaml") if other != path]
        raise SplitgymError(f"{place}: {base_key}: no {name!r} beside it{did_you_mean(str(name), names)}")
    base = _read_yaml(base_path, f"{place}: {base_key}: {base_path.name}")
    if base_key in base:
        raise SplitgymError(f"{place}: {base_key}: {name!r} extends another one itself; name that")
    return _merged(base, {key: value for key, value in content.items() if key != base_key})


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = (key for key in over if isinstance(over[key], dict) and isinstance(base.get(key), dict))
    return base | over | {key: _merged(base[key], over[key]) for key in both}


def _read_yaml(path: Path, place: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SplitgymError(f"{place}: no such file; check the path") from None
    except IsADirectoryError:
        raise SplitgymError(f"{place}: a folder; name a YAML file in it") from None
    except OSError as error:
        raise SplitgymError(f"{place}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise SplitgymError(f"{place}: not UTF-8 text; name a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be understood"
        raise SplitgymError(f"{place}:{line} not YAML: {problem}; mend it there") from None
    if not isinstance(content, dict):
        raise SplitgymError(f"{place}: no named fields in it; see a shipped file for an example")
    return content


def _problem(details: dict[str, Any], shape: type) -> str:
    kind, value = details["type"], details["input"]
    found, candidates = _follow(details["loc"], shape)
    place = _render(found)
    if kind in _UNKNOWN_KEY:
        key = str(details["loc"][-1])
        parent = _render(found[:-1])
        return f"{parent}{': ' if parent else ''}unknown {key!r}{did_you_mean(key, _field_names(candidates))}"
    if kind in _NOT_ONE_OF:
        options = re.findall(r"'([^']*)'", details["ctx"][_NOT_ONE_OF[kind]])
        if kind == "union_tag_invalid":
            place, value = f"{place}.{details['ctx']['discriminator'].strip(chr(39))}", details["ctx"]["tag"]
        return f"{place}: unknown {value!r}{did_you_mean(str(value), options)}"
    if kind.startswith("missing"):
        return f"{place}: missing; add it"
    if kind == "union_tag_not_found":
        return f"{place}: {details['ctx']['discriminator']} is missing; add it"
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        return f"{place}: {message}" if place else message
    message = str(details["msg"])
    return f"{place}: {message[0].lower()}{message[1:]}, not {value!r}"


def _render(location: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _follow(location: tuple[str | int, ...], shape: object) -> tuple[tuple[str | int, ...], list[object]]:
    """The location without the names of a union's members, and the shapes its last key may belong to."""
    shapes = _members(shape)
    parents = shapes
    found: list[str | int] = []
    for depth, part in enumerate(location):
        inner = [member for holder in shapes for member in _inside(holder, part)]
        if inner or depth == len(location) - 1:
            parents, shapes = shapes, inner
            found.append(part)
        else:  # a union's member
            shapes = [holder for holder in shapes if _is_called(holder, str(part))] or shapes
    return tuple(found), parents


def _members(shape: object) -> list[object]:
    """The models, dataclasses and containers that ``shape`` may be."""
    origin = get_origin(shape)
    if origin is Annotated:
        return _members(get_args(shape)[0])
    if origin in (Union, types.UnionType):
        return [member for option in get_args(shape) for member in _members(option)]
    return [shape]


def _inside(holder: object, part: str | int) -> list[object]:
    if isinstance(part, int):
        items = [item for item in get_args(holder) if item is not Ellipsis]
        return _members(items[min(part, len(items) - 1)]) if items else []
    fields = _fields(holder)
    return _members(fields[part]) if part in fields else []


def _fields(holder: object) -> dict[str, object]:
    if isinstance(holder, type) and issubclass(holder, BaseModel):
        return {field.alias or name: field.annotation for name, field in holder.model_fields.items()}
    if isinstance(holder, type) and is_dataclass(holder):
        return get_type_hints(holder, include_extras=True)
    return {}


def _field_names(holders: list[object]) -> set[str]:
    return {name for holder in holders for name in _fields(holder)}


def _is_called(holder: object, tag: str) -> bool:
    """Whether ``tag`` names this member of a union: its class, or the literal that tells it apart."""
    if getattr(holder, "__name__", None) == tag:
        return True
    kinds = (field for field in _fields(holder).values() if get_origin(field) is Literal)
    return any(tag in get_args(kind) for kind in kinds)
