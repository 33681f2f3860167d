"""Everything is in pyproject.toml; this file is where the compiled library of csrc/ will be built."""

from setuptools import setup

setup()
