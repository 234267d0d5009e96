"""The tasks: each is a batch, a loss and its measurements."""
