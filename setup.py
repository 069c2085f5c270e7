"""The folder configs/ becomes the package `pit_jax.configs` of a wheel; pyproject.toml says the
rest.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pit_jax*"]), "pit_jax.configs"],
    package_dir={"pit_jax.configs": "configs"},
)
