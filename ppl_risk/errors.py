"""Errors a user can cause. Each message says what is wrong, where, and what to do; the command line prints it alone."""

from __future__ import annotations


class RiskError(ValueError):
    """A mistake in the problem or the call, that the caller can mend."""


class PreflightError(RiskError):
    """A problem on which any number would be wrong (NaN weights, a detector that is not one number per row, ...)."""


class NoTransportError(RiskError):
    """An input law for which no map from independent standard normals is known."""


class UnknownNameError(RiskError):
    """A model, recipe, site or option that does not exist."""


class CallLimitError(RiskError):
    """A batch that would have passed the limit on calls; nothing of it was run."""


class UnitFailedError(RiskError):
    """A unit of work that failed however often it was tried; what the other units found is kept."""


class FolderError(RiskError):
    """A folder that units cannot be kept in or read from: a full disk, no permission. Nothing is wrong with the problem."""


class PremiseError(RiskError):
    """A mitigated model was called although its card says that a premise of its guarantee fails."""


class NetworkError(RiskError, RuntimeError):
    """A network or detector that raised an error of its own; the message repeats its first line."""


def is_final(error: BaseException) -> bool:
    """Whether a second try is pointless: a mistake that the caller must mend, and not an error that a network raised once."""
    return isinstance(error, RiskError) and not isinstance(error, NetworkError)


class ArgumentError(RiskError, TypeError):
    """An argument of the wrong kind, or one that the call does not take."""


class UntrustedFileError(RiskError):
    """A file that would have to execute code in order to be read."""


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 200 characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def undefined_margins(wrong: int, total: int) -> str:
    """What every method says of margins that are NaN: each would count as no catastrophe."""
    return (
        f"{wrong:,} of {total:,} margins are NaN, which would count as no catastrophe. Look for log(0), division by "
        "zero or overflow in the network."
    )
