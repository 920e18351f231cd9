"""Prompt chaining: the answer to one prompt is a part of the next (Wu et al. 2022, AI Chains)."""
import dataclasses
from collections.abc import Sequence

from llm_jax.config.errors import ConfigError
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
