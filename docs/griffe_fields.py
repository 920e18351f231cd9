"""Docstrings as this code writes them, for the API pages: a line `name: what it is` begins an entry of a list.

The docstrings name fields and arguments at the start of a line, or after three spaces. Without this the pages would run
them together into one paragraph.
"""
import re

import griffe

SECTIONS = ('Args:', 'Returns:', 'Raises:', 'Yields:')  # of Google's style, which the pages know


class Fields(griffe.Extension):
  """Rewrites the docstrings of classes and functions while they are loaded."""

  def on_class_members(self, *, cls: griffe.Class, **_) -> None:
    names = {name for name, member in cls.members.items() if member.is_attribute}
    rewrite(cls, names)

  def on_function_instance(self, *, func: griffe.Function, **_) -> None:
    names = {parameter.name.lstrip('*') for parameter in func.parameters}
    rewrite(func, names)


def rewrite(item: griffe.Object, names: set[str]) -> None:
  if item.docstring is not None:
    item.docstring.value = as_list(item.docstring.value, names)


def as_list(text: str, names: set[str]) -> str:
  """The text with an entry of a list for each of `names`; sections of Google's style are left as they are."""
  head, section, rest = split_at_section(text)
  out, inside = [], False
  for line in re.split(r'\n|\s{3}(?=\w+: )', head):
    entry = re.match(r'(\w+(?:, \w+)*): (.*)', line)
    if entry and set(entry[1].split(', ')) <= names:
      terms = ', '.join(f'`{name}`' for name in entry[1].split(', '))
      out += ['' if not inside else None, f'- {terms}: {entry[2]}']
      inside = True
    elif inside and line.strip():
      out.append(f'  {line.strip()}')
    else:
      out.append(line)
      inside = False
  return '\n'.join(line for line in out if line is not None) + section + rest


def split_at_section(text: str) -> tuple[str, str, str]:
  """What comes before the first section, the separator, the sections."""
  places = [text.find(f'\n{name}\n') for name in SECTIONS]
  found = [place for place in places if place >= 0]
  if not found:
    return text, '', ''
  return text[:min(found)], '\n', text[min(found) + 1:]
