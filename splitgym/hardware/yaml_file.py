"""YAML files read into dataclasses and written back, with errors that name file, field and mend."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from splitgym.errors import SplitgymError, did_you_mean

_T = TypeVar("_T")


def read_yaml(path: Path, shape: type[_T]) -> _T:
    """The file's content as a ``shape``.

    Raises:
        SplitgymError: if the file cannot be read, is no YAML, or a field is missing, unknown or out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SplitgymError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SplitgymError(f"{path}: cannot be read ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise SplitgymError(f"{path}{line}: {problem}; mend the YAML there") from None
    try:
        return TypeAdapter(shape).validate_python(content)
    except ValidationError as error:
        raise SplitgymError(f"{path}: {_first_problem(error, content)}") from None


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
        raise SplitgymError(
            f"{path}: cannot be written ({reason}); choose a path in a folder you can write"
        ) from None


def _first_problem(error: ValidationError, content: object) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        missing = [str(p["loc"][-1]) for p in error.errors() if p["type"].startswith("missing")]
        hint = did_you_mean(str(problem["loc"][-1]), missing) if missing else "; remove it"
        return f"{place}: unknown field{hint}"
    if problem["type"].startswith("missing"):
        unknown = [
            p for p in error.errors() if p["type"] in ("unexpected_keyword_argument", "extra_forbidden")
        ]
        found = f" (there is {unknown[0]['loc'][-1]!r})" if unknown else ""
        return f"{place}: missing{found}; add the field"
    if problem["type"] == "value_error":
        message = str(problem["msg"]).removeprefix("Value error, ")
        return f"{place}: {message}; mend these values" if place else f"{message}; mend these values"
    if not place:
        return f"a {type(content).__name__} where named fields were expected; see a shipped profile"
    message = str(problem["msg"])
    return f"{place}: {problem['input']!r} will not do; {message[0].lower()}{message[1:]}"
