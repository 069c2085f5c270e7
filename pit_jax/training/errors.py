"""Errors that end a training run; programs print them as one line."""


class TrainingError(RuntimeError):
    """Training cannot continue as it is configured."""
