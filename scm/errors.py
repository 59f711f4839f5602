"""The one exception for mistakes a user can make and mend; knows nothing of the rest."""


class UserError(ValueError):
    """A mistake of the user's: one line that says what, which value, and what to do.

    The command prints the message alone, without a traceback.
    """
