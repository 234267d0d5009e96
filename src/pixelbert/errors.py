"""The exception and the warning whose messages are written for the person at the keyboard."""


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


class UnreadWarning(UserWarning):
    """A sentence is cut, or has words that the model does not know: it is scored without them.

    One is issued a call, with the counts and the first case. `processor.unread(sentences)` tells of each sentence.
    """
