"""The version of this package; `pyproject.toml` names the same one."""

__version__ = '0.2.0'
