"""Numbers of records, and how they are printed in the terminal and in the report."""
import math
from collections.abc import Mapping
from typing import Any

NOTHING = '–'


def value(record: Mapping[str, Any], name: str) -> float:
  """A number of a record; NaN where it is absent or no number."""
  found = record.get(name)
  return float(found) if isinstance(found, int | float) else math.nan


def show(x: float | None, form: str) -> str:
  return NOTHING if x is None or not math.isfinite(x) else form.format(x)


def count(x: float | None) -> str:
  """Three digits and a letter: 950, 6.95M, 8.03B, 15T."""
  if x is None:
    return NOTHING
  letters = ('', 'K', 'M', 'B', 'T')
  thousands = min(int(math.log10(max(x, 1))) // 3, len(letters) - 1)
  return f'{x / 1000 ** thousands:.3g}{letters[thousands]}'


def size(num_bytes: float) -> str:
  """`512 B`, `1.5 MiB`, `79.2 GiB`."""
  if num_bytes < 1024:
    return f'{num_bytes:.0f} B'
  for unit in ('KiB', 'MiB'):
    num_bytes /= 1024
    if num_bytes < 1024:
      return f'{num_bytes:.1f} {unit}'
  return f'{num_bytes / 1024:.1f} GiB'


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


def tick(number: float) -> str:
  """An axis's number, short: 0.5, 20, 1.5k, 3M, 3e-4."""
  if number == 0:
    return '0'
  if abs(number) < 1e-2:
    mantissa, exponent = f'{number:.2e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'
  for scale, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= scale:
      return f'{number / scale:.4g}{suffix}'
  return f'{number:.4g}'


def mixture_cells(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
  """Share of the tokens, epochs, size and tokens of a source, as papers print them.

  record: what the stage reads of the source, as `SourceStats.to_record` of `llm_jax/data/mixture_stats.py` gives it.
  """
  return (
    show(value(record, 'share'), '{:.1%}'),
    show(value(record, 'epochs'), '{:.3g}'),
    size(value(record, 'num_bytes')),
    count(value(record, 'num_tokens')),
  )
