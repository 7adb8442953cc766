"""Errors and warnings of PruneGym: each says what was given, what is allowed and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneGymError(Exception):
    """Base class of every error that PruneGym raises on purpose."""


class UnknownNameError(PruneGymError, KeyError):
    """A name that is not known: of a model, data set, reward, argument and so on. The message suggests the nearest."""

    def __init__(self, kind: str, name: object, allowed: Iterable[str], more: str = "") -> None:
        """Build the message.

        Args:
            kind: What has this name, e.g. ``"model"``.
            name: What was given.
            allowed: The names that are known.
            more: Sentences to add at the end.
        """
        names = sorted(allowed)
        self._arguments = (kind, name, names, more)
        self.message = f"Unknown {kind} {name!r}.{suggestion(name, names)} {more}".rstrip()
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message itself; ``KeyError`` would put it in quotes."""
        return self.message

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, object, list[str], str]]:
        """Pickle the arguments, so that worker processes can send the error: ``args`` holds only the message."""
        return type(self), self._arguments


class UnknownArgumentError(PruneGymError, TypeError):
    """A keyword argument that an environment does not have. TorchRL expects Python's TypeError for this."""


class InvalidInputError(PruneGymError, ValueError):
    """A value, shape or type that the called function does not accept."""


class MissingDataError(PruneGymError, FileNotFoundError):
    """A file, data set or checkpoint that does not exist."""

    def __str__(self) -> str:
        """Return only the message, without an errno."""
        return str(self.args[0]) if self.args else ""


class UntraceableModelError(PruneGymError, TypeError):
    """A network that cannot be recorded, or in which no gate can be found."""


class RewardError(PruneGymError, ValueError):
    """A reward or accuracy function failed, or returned a wrong shape or values that are NaN, infinite or too large."""


class MissingDependencyError(PruneGymError, ImportError):
    """An optional package that a feature needs; the message has the pip command."""


class PenaltyWarning(UserWarning):
    """A penalty that is priced per channel or weight, but looks like one for a share of the whole network."""


class SkippingWarning(UserWarning):
    """Much of a network is computed for all channels, whatever its mask."""


class DataWarning(UserWarning):
    """Files of an image folder that are left out."""


class CoverageWarning(UserWarning):
    """Gates that can remove only a small share of a network's MACs."""


def suggestion(name: object, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest name, if there is one, and all names."""
    known = sorted(names)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."
