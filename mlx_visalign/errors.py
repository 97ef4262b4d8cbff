"""The one exception a user's mistake raises. The command line prints its text and exits with 2, without a traceback."""


class UserError(Exception):
    """What was expected, what came, and what to do, in one or a few sentences."""
