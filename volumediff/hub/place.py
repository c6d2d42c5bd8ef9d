"""Names of models on the Hugging Face Hub: `hf:OWNER/NAME[@REVISION][/FILE]`."""

import re
from dataclasses import dataclass

from volumediff.errors import UsageError

__all__ = ["PREFIX", "HubPlace"]

PREFIX = "hf:"
WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"  # as the hub names owners and models
GRAMMAR = re.compile(rf"{PREFIX}({WORD}/{WORD})(?:@([^/@\s]+))?(?:/([^@\s]+))?")


@dataclass(frozen=True)
class HubPlace:
    """A model repository, or a file in it.

    Arguments:
        repository: OWNER/NAME
        revision: branch, tag or commit hash; None is the newest
        file: path in the repository; None is all of it
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def names_one(cls, text: object) -> bool:
        """Whether a text means the hub, rather than a file or folder."""
        return isinstance(text, str) and text.startswith(PREFIX)

    @classmethod
    def parse(cls, text: str) -> "HubPlace":
        """The place that a text names.

        Raises:
            UsageError: it has another form
        """
        match = GRAMMAR.fullmatch(text)
        if match is None or ".." in (match[3] or "").split("/"):
            raise UsageError(
                f"{text}: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
                "hf:OWNER/NAME@REVISION/FILE."
            )
        return cls(*match.groups())

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{f'/{self.file}' if self.file else ''}"
