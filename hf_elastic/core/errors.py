"""What is said to a user in one line; everything else that is raised is a bug and keeps its traceback."""


class UserError(ValueError):
    """Bad input: the message names the value and what is allowed. `hf-elastic` prints it as one line, with exit status 2."""


class MissingPackageError(UserError, ImportError):
    """A package that an optional part needs is not installed; the message names the extra that installs it."""


class MismatchError(UserError, RuntimeError):
    """Weights have other shapes than their config says; transformers raises a RuntimeError."""
