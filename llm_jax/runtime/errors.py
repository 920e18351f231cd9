"""Errors that every process of a run raises together (see `processes.on_first`)."""


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or believed. The message names the file."""
