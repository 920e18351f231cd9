"""Needles in haystacks as the picture that people know: a row for a length of text, a cell for a depth in it."""
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any


def needle_tables(finals: Mapping[str, Mapping[str, Any]]) -> str:
  """A heat map for each stage that was asked, by name; '' where none was. finals: final records by stage."""
  maps = [_heat_map(stage, found) for stage, final in finals.items() if (found := _found(final))]
  note = ('<p class="note">A fact is planted at a depth of held-out text (0 % is its start) and asked for at its end: '
          'the share of texts in which the model answers right.</p>')
  return f'<h2>Needles in a haystack</h2><div class="charts">{"".join(maps)}</div>{note}' if maps else ''


def mean_found(final: Mapping[str, Any]) -> tuple[int, float, float | None] | None:
  """(tokens, share found, share found before the stage) of the longest text that it was asked in."""
  if not (found := _found(final)):
    return None
  context, after, before = found[-1]
  return context, sum(after) / len(after), sum(before) / len(before) if before else None


def _found(final: Mapping[str, Any]) -> list[tuple[int, Sequence[float], Sequence[float] | None]]:
  """(tokens, shares by depth at the stage's end, and at its beginning), the shortest text first."""
  names = {int(match[1]): name for name in final if (match := re.fullmatch(r'needles_(\d+)', name))}
  return [(context, final[names[context]], final.get(f'{names[context]}_before')) for context in sorted(names)]


def _heat_map(stage: str, found: Sequence[tuple[int, Sequence[float], Sequence[float] | None]]) -> str:
  depths = len(found[0][1])
  head = ''.join(f'<th>{100 * i / max(depths - 1, 1):.0f} %</th>' for i in range(depths))
  rows = []
  for context, after, before in found:
    for when, shares in (('before', before), ('after' if before else '', after)):
      if shares:
        rows.append(f'<tr><td>{context:,} tokens{", " + when if when else ""}</td>{"".join(map(_cell, shares))}</tr>')
  return (f'<figure class="scroll"><figcaption>{html.escape(stage)}</figcaption>'
          f'<table class="heat"><tr><th>depth</th>{head}</tr>{"".join(rows)}</table></figure>')


def _cell(share: float) -> str:
  return (f'<td style="background: color-mix(in srgb, var(--c) {70 * share:.0f}%, transparent)">'
          f'{100 * share:.0f}</td>')
