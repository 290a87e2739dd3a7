"""Every error batchd raises on purpose, as one tree.

A class's docstring says in one sentence what happened; the message given at the raise names the thing, the place
and the remedy. `exit_code` is what the command line exits with. Bugs are not here: they are assertions.
"""


class BatchdError(Exception):
    """Something batchd could not do.

    >>> try:
    ...     client.job("many")
    ... except BatchdError as error:  # The base of all: of the journal's, of the supervisor's, of jobs'.
    ...     print(f"{type(error).__name__}: {error}")
    UsageError: 'many' is no job: write batch:index
    """

    exit_code = 3


class UsageError(BatchdError):
    """What was asked for cannot be done as it was written."""

    exit_code = 2


class TaskError(UsageError):
    """The task could not be found, imported or called."""


class InputError(UsageError):
    """The input is missing, malformed or of an unknown kind."""


class InputChanged(UsageError):
    """The input differs from the one the batch was given before."""


class CodeChanged(UsageError):
    """The task's source file differs from the one the batch was started with."""


class BatchNotFound(UsageError):
    """No batch, or more than one, answers to that name."""


class InputUnreadable(BatchdError):
    """A job's input could not be unpickled in its worker."""

    exit_code = 1


class ResultUnreadable(BatchdError):
    """A job's result was pickled and cannot be unpickled."""

    exit_code = 1


class CommandFailed(BatchdError):
    """The command of a job ended with another exit code than 0, or could not be run."""

    exit_code = 1


class ResultError(BatchdError):
    """A result could not be read back or written as JSON."""

    exit_code = 1


class JournalError(BatchdError):
    """The journal cannot be used."""


class JournalUnsafe(JournalError):
    """The journal's folder could be written by somebody else, or lies where LMDB must not be."""


class NotAJournal(JournalError):
    """The folder holds something that is not a batchd journal."""


class JournalNewer(JournalError):
    """The journal was written by a newer batchd."""


class JournalFull(JournalError):
    """The disk under the journal is full; nothing that was acknowledged is lost."""


class JournalCrowded(JournalError):
    """So many read the batch that its table of readers has no place for another one."""


class JournalDamaged(JournalError):
    """A record of the journal does not read back as it was written."""


class SupervisorError(BatchdError):
    """The supervisor could not be started, reached or understood."""


class SupervisorMismatch(SupervisorError):
    """A supervisor of another batchd version holds the journal."""


class BatchBusy(SupervisorError):
    """Another client has the batch open."""


class ClientClosed(BatchdError):
    """The client was closed before it heard of the job's outcome."""


class FormatError(BatchdError):
    """Bytes do not follow batchd's formats; the message says which record and why."""


class IllegalTransition(BatchdError):
    """A fact arrived that the state tables do not allow: a bug, never an operating condition."""
