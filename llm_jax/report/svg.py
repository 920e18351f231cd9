"""Elements of an SVG picture, as text."""
from llm_jax.report.html import escape


def element(tag: str, inside: str | None = None, **attributes: object) -> str:
  """`<tag a="1"/>`, or `<tag a="1">inside</tag>`; `inside` is SVG already.

  attributes: escaped, in their order. `class_` is `class`, and `_` within a name stands for `-`; those that are None
  are left out.
  """
  parts = [tag]
  for name, value in attributes.items():
    if value is not None:
      parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(value)}"')
  head = ' '.join(parts)
  return f'<{head}/>' if inside is None else f'<{head}>{inside}</{tag}>'


def path(css: str, shape: str) -> str:
  return element('path', class_=css, d=shape)


def text(css: str, x: object, y: object, words: str, anchor: str | None = None) -> str:
  """anchor: 'start' (where None), 'middle' or 'end', the part of the words that stands at x."""
  return element('text', escape(words), class_=css, x=x, y=y, text_anchor=anchor)
