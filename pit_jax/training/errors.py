"""Errors that end a training, told to the user in one line."""


class TrainingError(RuntimeError):
    """Training went wrong in a way that continuing as is cannot mend."""
