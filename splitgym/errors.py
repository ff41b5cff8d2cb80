"""The one exception for a user's mistake: a line that names the place, the value and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SplitgymError(Exception):
    """A mistake of the user's. Its message is one line; the command line prints it and exits with 2."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where an option is close to ``value``, else ``"; one of: a, b"``."""
    known = sorted(options)
    close = difflib.get_close_matches(value, known, n=1)
    if not close:  # difflib is case-sensitive; a person is not
        lowered = {option.lower(): option for option in known}
        close = [lowered[match] for match in difflib.get_close_matches(value.lower(), lowered, n=1)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; one of: " + ", ".join(known) if known else ""
