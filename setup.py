"""Builds the package. What it is called, needs and installs stands in pyproject.toml."""
from setuptools import setup

setup()
