"""The one exception that reaches a user: a stable code and one sentence (what was wrong, what is accepted)."""

from __future__ import annotations


class HwqError(Exception):
    """Raised at hwq's boundary for anything the caller can mend.

    ``code`` is stable and made for programs ("model-missing", "budget-impossible", ...); the text is made for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[HwqError], tuple[str, str]]:
        return HwqError, (self.code, self.message)
