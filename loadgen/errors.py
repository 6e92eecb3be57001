"""The exception tree. Foreign exceptions are translated once, at the seam."""

from __future__ import annotations


class LoadgenError(Exception):
    """Anything loadgen raises on purpose; ``str()`` is one line fit for a user."""


class ConfigError(LoadgenError):
    """A scenario, flag or input file that cannot be used. Exit status 2."""


class ExchangeError(LoadgenError):
    """A request failed in transport (connect, reset, protocol violation)."""


class PowerError(LoadgenError):
    """A power source cannot be read; the message says what to do about it."""


class RunDirError(LoadgenError):
    """A run directory is missing, unreadable or of an unknown schema."""


class CapacityError(LoadgenError):
    """The embedded server cannot hold what it was asked to (memory, limits)."""
