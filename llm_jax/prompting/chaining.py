"""Prompt chaining: the answer to one prompt is a part of the next (Wu et al. 2022, AI Chains)."""
import dataclasses
import json
import pathlib
import string
from collections.abc import Sequence
from typing import Any

from llm_jax.config.errors import ConfigError, require
from llm_jax.prompting.program import Generate, Program, texts


@dataclasses.dataclass(frozen=True)
class Link:
  """One prompt of a chain.

  template: with `{input}`, what the chain is given, `{previous}`, the last answer, or `{NAME}`, that of a link.
  name: by which later links know its answer.
  """
  template: str
  name: str = 'previous'
  stops: tuple[str, ...] = ()
  max_new_tokens: int = 256


def chain(links: Sequence[Link], text: str) -> Program[list[str]]:
  """The answers of all links, in order.

  Raises:
    ConfigError: a template names an answer that no link before it gives.
  """
  known = {'input': text, 'previous': text}
  answers: list[str] = []
  for link in links:
    try:
      prompt = link.template.format(**known)
    except (KeyError, IndexError, ValueError) as error:
      raise ConfigError('template', link.template, f'{error} is no answer of a link before it: use one of '
                        f'{", ".join(known)}') from error
    [said] = yield [Generate(prompt, stops=link.stops, max_new_tokens=link.max_new_tokens)]
    answer = texts(said)[0].strip()
    answers.append(answer)
    known[link.name] = known['previous'] = answer
  return answers


# ---------------------------------------------------------------------------------------------- files
def read_links(path: pathlib.Path) -> tuple[Link, ...]:
  """The links of a file: a JSON list of objects with the fields of `Link`.

  Raises:
    ConfigError: the file cannot be read, or names the link that is damaged or asks for an answer that none before it
      gives.
  """
  try:
    rows = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ConfigError('--strategy', f'file={path}', f'cannot be read ({error}): name a JSON list of prompts') from error
  require(isinstance(rows, list) and len(rows) > 0, '--strategy', f'file={path}', 'is no list of prompts')
  links = tuple(_link(row, f'{path}, prompt {number}') for number, row in enumerate(rows, 1))
  known = {'input', 'previous'}
  for number, link in enumerate(links, 1):
    unknown = sorted(set(placeholders(link)) - known)
    require(not unknown, f'{path}, prompt {number}', f'{{{"".join(unknown[:1])}}}',
            f'is no answer of a prompt before it: use one of {", ".join(sorted(known))}')
    known.add(link.name)
  return links


def _link(row: Any, where: str) -> Link:
  fields = {field.name for field in dataclasses.fields(Link)}
  require(isinstance(row, dict), where, str(row)[:40], f'is no object with {", ".join(sorted(fields))}')
  unknown = sorted(row.keys() - fields)
  require(not unknown, where, str(unknown[:1]), f'is unknown: use {", ".join(sorted(fields))}')
  require(isinstance(row.get('template'), str), where, str(row)[:40], "needs a 'template'")
  stops = row.get('stops', [])
  is_list = isinstance(stops, list) and all(isinstance(stop, str) for stop in stops)
  require(is_list, f'{where}.stops', str(stops)[:40], 'give a list of texts')
  length = row.get('max_new_tokens', 256)
  require(isinstance(length, int) and length >= 1, f'{where}.max_new_tokens', length, 'use 1 or more')
  try:
    list(string.Formatter().parse(row['template']))
  except ValueError as error:
    raise ConfigError(where, row['template'][:40], f'is no template ({error}): write a brace that is text twice'
                      ) from error
  return Link(row['template'], str(row.get('name', 'previous')), tuple(stops), length)


def placeholders(link: Link) -> list[str]:
  """The names in a template's braces."""
  return [name for _, name, _, _ in string.Formatter().parse(link.template) if name is not None]


def literal_text(link: Link) -> str:
  """What a template says outside of its braces."""
  return ''.join(literal for literal, _, _, _ in string.Formatter().parse(link.template))
