"""Numbers of records, and how they are printed in the terminal and in the report."""
import math
from typing import Any

NOTHING = '–'


def value(record: dict[str, Any], name: str) -> float:
  """A number of a record; NaN where it is absent or no number."""
  found = record.get(name)
  return float(found) if isinstance(found, int | float) else math.nan


def show(x: float | None, form: str) -> str:
  return NOTHING if x is None or not math.isfinite(x) else form.format(x)


def count(x: float | None) -> str:
  """Three digits and a letter: 950, 6.95M, 8.03B, 15T."""
  if x is None:
    return NOTHING
  power = min(int(math.log10(max(x, 1))) // 3, 4)
  return f'{x / 1000 ** power:.3g}{("", "K", "M", "B", "T")[power]}'


def size(num_bytes: float) -> str:
  """`512 B`, `1.5 MiB`, `79.2 GiB`."""
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if num_bytes < 1024 or unit == 'GiB':
      return f'{num_bytes:.0f} {unit}' if unit == 'B' else f'{num_bytes:.1f} {unit}'
    num_bytes /= 1024
  raise AssertionError  # the loop returns


def duration(seconds: float) -> str:
  """`45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`; `?` when it is not known."""
  if not math.isfinite(seconds):
    return '?'
  whole = round(max(seconds, 0))
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  if whole < 86_400:
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'
  return f'{whole // 86_400} d {whole % 86_400 // 3600} h'


def shares_shown(record: dict[str, Any]) -> tuple[str, str, str, str]:
  """Share of the tokens, epochs, size and tokens of a source, as papers print them."""
  number = lambda name: value(record, name)
  return (show(number('share'), '{:.1%}'), show(number('epochs'), '{:.3g}'), size(number('num_bytes')),
          count(number('num_tokens')))
