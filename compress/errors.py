"""The one exception that means "what you gave cannot be used"."""


class InputError(ValueError):
    """Report input that cannot be used.

    The message is one line for the person who typed the command: it names the thing, the numbers that
    disagree and the remedy. Command lines print it alone and exit with a code other than 0; any other
    exception is a bug and keeps its traceback.
    """
