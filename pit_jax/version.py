"""The version of the installed package."""

import importlib.metadata

try:
    __version__ = importlib.metadata.version("pit-jax")
except importlib.metadata.PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"
