"""The one exception for mistakes that a user can make and mend."""


class UserError(ValueError):
    """A mistake of the user's: one line that says what, which value, and what to do.

    The command prints the message alone, without a traceback.
    """
