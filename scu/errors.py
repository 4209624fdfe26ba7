"""What can go wrong, as one tree.

    ScuError                 anything this project reports on purpose
    +-- InputError           the user can mend it before a run starts: exit code 2
    |   +-- ConfigError      a setting is missing, unknown, out of range or contradicts another
    |   +-- DataError        a file or data set cannot be used as it is
    |   +-- ModelError       a base model or adapter cannot be used as it is
    |   +-- OutputError      the output folder cannot be used
    +-- TrainingError        a run that had started could not go on: exit code 1

Programming errors are not here: they stay `assert`, `TypeError` and friends.
"""


class ScuError(Exception):
    """Base of every error this project raises on purpose."""


class InputError(ScuError, ValueError):
    """Something the user gave cannot be used; nothing was started or written."""


class ConfigError(InputError):
    """A setting is missing, unknown, out of range or contradicts another."""


class DataError(InputError):
    """A file or data set cannot be used as it is."""


class ModelError(InputError):
    """A base model or adapter cannot be used as it is."""


class OutputError(InputError):
    """The output folder cannot be used."""


class TrainingError(ScuError):
    """A run that had started could not go on."""
