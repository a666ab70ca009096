"""Errors a user meets: one line that says what was wrong, what was expected and what to do."""


class XDistillError(RuntimeError):
    """Something went wrong while working; the command line prints one line and exits with 1."""

    exit_code = 1


class UsageError(XDistillError):
    """The request itself is wrong (unknown key, domain, objective...); exits with 2."""

    exit_code = 2


class RoleError(XDistillError):
    """An objective reached a network in a way that would corrupt a distributed run (design section 4)."""
