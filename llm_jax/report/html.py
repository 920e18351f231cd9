"""Pieces of a self-contained HTML page: escaping, tables, trees. No network, and no script but the page's own."""
import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Any

from llm_jax.report.style import STYLE

# Control characters, but tabs and ends of lines, and the characters that picture them.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in '\n\t'} | {127: 0x2421}


def page(title: str, body: Iterable[str], style: str = '', script: str = '') -> str:
  """The whole document. The policy lets nothing but the style sheet and `script` work, whatever slips into the text.

  Args:
    style: rules beside those of all pages.
    script: of the page, run at its end; most have none.
  """
  pieces = '\n'.join(piece for piece in body if piece)
  allowed = "default-src 'none'; style-src 'unsafe-inline'"
  if script:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')
    allowed += f"; script-src 'sha256-{digest}'"
    pieces += f'\n<script>{script}</script>'
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{pieces}
</body>
</html>
"""


def escape(value: Any) -> str:
  """Text for HTML and SVG from anyone: markup is shown, and control characters become visible pictures of
  themselves."""
  return html.escape(escape_controls(value))


def escape_controls(value: Any) -> str:
  """The same without the markup: for text that a script shows as text."""
  text = str(value).encode('utf-8', 'replace').decode('utf-8')  # lone surrogates are no text
  return text.replace('\r\n', '\n').translate(CONTROL_PICTURES)


def tiles(numbers: Iterable[tuple[str, str]], wide: Iterable[tuple[str, str]] = ()) -> str:
  """Headline numbers: (label, value); `wide` ones take a row."""
  cells = [_tile(label, value, 'tile') for label, value in numbers]
  cells += [_tile(label, value, 'tile wide') for label, value in wide]
  return f'<div class="tiles">{"".join(cells)}</div>'


def _tile(label: str, value: str, css: str) -> str:
  return f'<div class="{css}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def bars(values: Sequence[tuple[str, float, str]]) -> str:
  """Horizontal bars from zero: (label, value of 0 or more, CSS class)."""
  most = max(value for _, value, _ in values) or 1.0
  rows = [f'<span>{escape(label)}</span><div><i class="{css}" style="width:{100 * value / most:.1f}%"></i></div>'
          f'<b>{value:.3f}</b>' for label, value, css in values]
  return f'<div class="bars">{"".join(rows)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], css: str = '') -> str:
  """A table that scrolls sideways where it does not fit. css: 'words' aligns to the left what is not numbers."""
  header = _row('th', head)
  body = ''.join(_row('td', row) for row in rows)
  return (f'<div class="card scroll"><table class="{css}"><thead>{header}</thead>'
          f'<tbody>{body}</tbody></table></div>')


def lineage_table(lineage: Any) -> str:
  """A nested tree as two columns, names joined by dots."""
  rows = ''.join(_row('td', row) for row in flatten(lineage))
  return f'<div class="card scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _row(tag: str, cells: Iterable[Any]) -> str:
  inside = ''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)
  return f'<tr>{inside}</tr>'


def flatten(tree: Any, name: str = '') -> Iterable[tuple[str, Any]]:
  """(a.b[0].c, value) for every leaf; short lists of plain values stay together."""
  if isinstance(tree, dict) and tree:
    for key, value in tree.items():
      yield from flatten(value, f'{name}.{key}' if name else str(key))
  elif _is_list_of_trees(tree):
    for i, value in enumerate(tree):
      yield from flatten(value, f'{name}[{i}]')
  elif isinstance(tree, list):
    yield name, ', '.join(map(str, tree))
  else:
    yield name, tree


def tree(value: Any, name: str = 'config', is_open: bool = True) -> str:
  """Nested `<details>`, the first level open; a mapping's `kind` stands in its heading."""
  if _is_list_of_trees(value):
    return tree({_item_name(i, item): item for i, item in enumerate(value)}, name, is_open)
  if not isinstance(value, dict):
    shown = repr(tuple(value) if isinstance(value, list) else value)
    return f'<div class="leaf"><span class="name">{escape(name)}</span> = {escape(shown)}</div>'
  kind = value.get('kind')
  has_kind = isinstance(kind, str)
  kind_shown = f' <span class="muted">{escape(kind)}</span>' if has_kind else ''
  fields = {key: item for key, item in value.items() if key != 'kind' or not has_kind}
  inside = ''.join(tree(item, key, is_open=False) for key, item in fields.items())
  return disclosure(f'<span class="name">{escape(name)}</span>{kind_shown}', f'<div class="inside">{inside}</div>',
                    is_open=is_open)


def _is_list_of_trees(value: Any) -> bool:
  return isinstance(value, list) and any(isinstance(item, dict | list) for item in value)


def _item_name(i: int, item: Any) -> str:
  return f'[{i}] {item["name"]}' if isinstance(item, dict) and 'name' in item else f'[{i}]'


def disclosure(summary: str, inside: str, *, is_open: bool = False, css: str | None = None) -> str:
  """Something that opens on a click; `summary` and `inside` are HTML already."""
  class_ = '' if css is None else f' class="{css}"'
  open_ = ' open' if is_open else ''
  return f'<details{class_}{open_}><summary>{summary}</summary>{inside}</details>'
