"""The one exception type whose message is written for the person at the keyboard."""


class PixelBertError(Exception):
    """Something the user can put right: bad data, a bad path, a recipe that does not fit.

    The command line prints the message alone, without a traceback, and exits with status 2. The message names the
    file, line or row, says what was expected and what to do.
    """


class StoppedError(PixelBertError):
    """A signal asked for an end, and all was saved. The command line exits with 128 and the signal's number.

    Args:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def printable(text: str) -> str:
    """A text, such as the name of a file, as it may stand on a terminal: what is no visible character is escaped, so
    that nothing in it moves the cursor, hides a part or cannot be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
