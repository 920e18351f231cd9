"""Which combinations of parameters the default tests take."""
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def each_with_one(rows: Sequence[Sequence[Any]], values: Iterable[Any]) -> list[Any]:
  """Every row with every value behind it, as parameters of a test.

  In turn, each value with one row, so that all rows and all values are tested; the other combinations are slow.
  """
  found = []
  for number, value in enumerate(values):
    for index, row in enumerate(rows):
      marks = [] if index == number % len(rows) else [pytest.mark.slow]
      found.append(pytest.param(*row, value, marks=marks))
  return found
