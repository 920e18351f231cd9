"""The numbers of many processes in few words."""
from collections.abc import Sequence


def in_words(ranks: Sequence[int]) -> str:
  """Ascending ranks such as `0-511, 700, 701`: of a thousand that are missing a line must not name each."""
  runs: list[list[int]] = []
  for rank in ranks:
    if runs and rank == runs[-1][1] + 1:
      runs[-1][1] = rank
    else:
      runs.append([rank, rank])
  return ', '.join(_run(first, last) for first, last in runs)


def _run(first: int, last: int) -> str:
  if last - first < 2:
    return ', '.join(map(str, range(first, last + 1)))
  return f'{first}-{last}'
