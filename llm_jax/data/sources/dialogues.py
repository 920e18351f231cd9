"""Rows of conversations and of preferences: read, checked, and turned into ids of which only some are targets."""
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config import experiment as config
from llm_jax.config.errors import ConfigError
from llm_jax.data.sources import formats
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer


class Dialogue(NamedTuple):
  """One document: what the assistant says in messages[start:] is learnt."""
  messages: list[chat_templates.Message]
  start: int = 0

  @property
  def answers(self) -> list[str]:
    return [message['content'] for message in self.messages[self.start:] if message['role'] == 'assistant']


def length(dialogue: Dialogue) -> int:
  """Characters of all that is said."""
  return sum(len(message['content']) for message in dialogue.messages)


def said(row: tuple[Dialogue, ...]) -> str:
  """All that is said in a row, the prompt of a pair once."""
  first, *others = row
  texts = [*(message['content'] for message in first.messages), *(text for other in others for text in other.answers)]
  return '\n'.join(texts)


def read_conversation(line: bytes, where: str, source: config.Conversations) -> tuple[Dialogue]:
  """The row's one document. Raises ConfigError naming the row."""
  messages = _field(formats.json_object(line, where), source.field, where)
  return conversation(messages, where, source, source.field)


def conversation(messages: Any, where: str, source: config.Chats, name: str = 'messages') -> tuple[Dialogue]:
  """The one document of a list of {'role', 'content'}. Raises ConfigError naming the row."""
  return (_answered(Dialogue(messages), source.template, where, name),)


def read_preference(line: bytes, where: str, source: config.Preferences) -> tuple[Dialogue, Dialogue]:
  """(chosen, rejected), both with the row's prompt before them. Raises ConfigError naming the row."""
  return preference(formats.json_object(line, where), where, source)


def preference(row: dict, where: str, source: config.Pairs) -> tuple[Dialogue, Dialogue]:
  """(chosen, rejected) of {'prompt', 'chosen', 'rejected'}. Raises ConfigError naming the row."""
  prompt = _messages(row, 'prompt', 'user', where)
  _check(prompt, source.template, where, 'prompt')
  if prompt[-1]['role'] != 'user':
    raise formats.bad(where, 'the prompt does not end with the user', 'put what the assistant says into the answers')
  pair, written = [], []
  for name in ('chosen', 'rejected'):
    answer = _messages(row, name, 'assistant', where)
    if answer[:len(prompt)] == prompt:
      raise formats.bad(where, f'{name} begins with the prompt', 'leave the prompt out of it')
    pair.append(_answered(Dialogue([*prompt, *answer], len(prompt)), source.template, where, f'prompt + {name}'))
    written.append([(message['role'], chat_templates.trimmed(message['content'], source.template))
                    for message in answer])
  if written[0] == written[1]:
    raise formats.bad(where, 'chosen and rejected are equal', 'nothing is preferred: leave the row out')
  return tuple(pair)


def encode(dialogue: Dialogue, source: config.Dialogues, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32, counts bool): the document as the source's template writes it, and its targets that count."""
  ids, counts = chat_templates.render(dialogue.messages, source.template, tokenizer, dialogue.start)
  if isinstance(source, config.Pairs) and source.mask_formatting:
    counts &= ~chat_templates.formatting(ids, tokenizer)
  return ids, counts


def _field(row: dict, name: str, where: str) -> Any:
  if name not in row:
    raise formats.bad(where, f'no field {name!r}', f'found {sorted(row)[:8]}')
  return row[name]


def _messages(row: dict, name: str, role: str, where: str) -> list[chat_templates.Message]:
  """The field's messages, of which a text is one of `role`."""
  value = _field(row, name, where)
  if not isinstance(value, str | list):
    raise formats.bad(where, f'{name} is a {type(value).__name__}', "give a text, or a list of {'role', 'content'}")
  return [{'role': role, 'content': value}] if isinstance(value, str) else value


def _check(messages: Any, template: str, where: str, name: str) -> None:
  try:
    chat_templates.check(messages, template, name)
  except ConfigError as error:
    raise formats.bad(where, f'{error.field} = {error.value!r}', error.hint) from error
  for message in messages:
    formats.check_unicode(message['content'], where)


def _answered(dialogue: Dialogue, template: str, where: str, name: str) -> Dialogue:
  """The dialogue itself, where it holds something to learn."""
  _check(dialogue.messages, template, where, name)
  if not dialogue.answers:
    raise formats.bad(where, f'{name} has no assistant turn', 'nothing to learn from: leave the row out')
  return dialogue
