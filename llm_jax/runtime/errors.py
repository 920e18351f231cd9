"""Errors that every process of a run raises together (see `processes.on_first`), and an error's text as one line."""

MOST_CHARACTERS = 500


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or believed. The message names the file."""


def one_line(error: BaseException) -> str:
  """The error's text without line breaks, cut where it is very long; its class where it has no text."""
  return ' '.join(str(error).split())[:MOST_CHARACTERS] or type(error).__name__
