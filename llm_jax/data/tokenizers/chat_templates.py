"""Conversations as token ids: chat templates, exact to what was published, and which tokens the assistant says.

A conversation is a list of {'role', 'content'}: at most one system message, first, then user and assistant by turns.
What a template writes is the whole document: the ids are those of the template alone, with no end of text around them,
so that a model trained on them meets the same ids wherever that template is applied (`apply_chat_template` of
transformers gives the same).

Special tokens are put in by id. Contents go through the tokenizer, which turns no text into a special id: nobody can
end a turn, or open one, by writing the name of a special token. (The headers of 'plain', and llama2's [INST] and
<<SYS>>, are text, as published, and can be written by anyone.)
"""
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.sources import TEMPLATES
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.template_parts import (
  ANSWER,
  ANSWER_ENDS,
  END_OF_TEXT,
  OPTIONAL,
  TRIMMED,
  WRITERS,
  Message,
  Part,
  example,
)

FORMAT = 1  # raise it when a template writes other ids for the same messages
ROLES = ('system', 'user', 'assistant')


# ---------------------------------------------------------------------------------------------- what is refused
def check_template(template: str, tokenizer: Tokenizer) -> None:
  """Refuses a template whose special tokens the tokenizer lacks, or has where it writes text; names both."""
  require(template in TEMPLATES, 'template', template, f'use one of {TEMPLATES}')
  parts = example(template)
  needs = {part.special for part in parts} - {'', END_OF_TEXT.special, *OPTIONAL}
  missing = tuple(sorted(needs - tokenizer.special_ids.keys()))
  require(not missing, 'template', template, f'the tokenizer lacks its special tokens {missing}, it has '
          f"{tuple(tokenizer.special_ids)}: use BPE(special_tokens={tuple(sorted(needs))}), a file that has them, "
          "or 'plain'")
  text = ''.join(part.text for part in parts)
  # Mistral 7B v0.3 has llama2's [INST] as a special token, for example.
  written_as_text = tuple(sorted(name for name in tokenizer.special_ids if name in text))
  require(not written_as_text, 'template', template, f'it writes {written_as_text} as text, and to this tokenizer they '
          'are special tokens: use the template that the model was trained with, or another tokenizer')


def check(messages: Sequence[Message], template: str, name: str = 'messages') -> None:
  """Refuses what no template can write: ConfigError names the message, the value and what to change."""
  require(isinstance(messages, list | tuple), name, type(messages).__name__, "give a list of {'role', 'content'}")
  require(len(messages) > 0, name, messages, 'empty: give at least one message')
  previous_role = None
  for i, message in enumerate(messages):
    where = f'{name}[{i}]'
    _check_message(message, template, where)
    role = message['role']
    expected = _expected_roles(previous_role)
    require(role in expected, f'{where}.role', role, f'expected {" or ".join(expected)}: one system message at most, '
            'first, then user and assistant by turns')
    previous_role = role


def _check_message(message: Message, template: str, where: str) -> None:
  require(isinstance(message, Mapping), where, type(message).__name__, "give {'role', 'content'}")
  role = message.get('role')
  require(role in ROLES, f'{where}.role', role, f'template {template!r} lacks it: use one of {ROLES}')
  content = message.get('content')
  require(isinstance(content, str), f'{where}.content', type(content).__name__, 'give a text')
  text = message['content']
  require(bool(text.strip()), f'{where}.content', text[:20], 'empty: leave the message out, or say something')


def _expected_roles(previous: str | None) -> tuple[str, ...]:
  """previous: the role of the message before; None: there is none."""
  if previous is None:
    return ('system', 'user')
  return ('assistant',) if previous == 'user' else ('user',)


def trimmed(content: str, template: str) -> str:
  """What the template writes of a content."""
  return content.strip() if template in TRIMMED else content


# ---------------------------------------------------------------------------------------------- ids
def render(messages: Sequence[Message], template: str, tokenizer: Tokenizer,
           start: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [tokens], counts bool [tokens]) of a conversation.

  `counts` marks what the assistant says in every turn from message `start` on, with the token that ends its turn: the
  targets that are learnt. The ids begin with `prompt_ids` of the messages before any answer: no token reaches over the
  border between a header and an answer, where the model begins to write.

  Raises:
    ConfigError: a conversation without an assistant's turn, and as `check` and `check_template` do.
  """
  check_template(template, tokenizer)
  check(messages, template)
  roles = [message['role'] for message in messages]
  require('assistant' in roles[start:], 'messages', roles[:8],
          'no assistant turn: nothing to learn from, leave the row out')
  ids, by_assistant = _encode(WRITERS[template](messages), tokenizer)
  num_before = len(prompt_ids(messages[:start], template, tokenizer)) if start else 0
  return ids, by_assistant & (np.arange(len(ids)) >= num_before)


def prompt_ids(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> np.ndarray:
  """int32 ids of a conversation that ends with the user's turn, and of the header behind which the assistant speaks."""
  check_template(template, tokenizer)
  check(messages, template)
  last_role = messages[-1]['role']
  require(last_role == 'user', f'messages[{len(messages) - 1}].role', last_role,
          'end with a message of the user, which the assistant is to answer')
  parts = list(WRITERS[template]([*messages, ANSWER]))
  answer = max(i for i, part in enumerate(parts) if part.by_assistant and part.text)
  ids, _ = _encode(parts[:answer], tokenizer)
  return ids


def end_of_turn(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that stop an answer: the template's end of turn, then the end of text where that is another."""
  check_template(template, tokenizer)
  [end] = [part for part in example(template) if part.by_assistant and part.special]
  end_id = tokenizer.eot if end == ANSWER_ENDS else tokenizer.special_ids[end.special]
  return tuple(dict.fromkeys((end_id, tokenizer.eot)))


def formatting(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """bool, the shape of `ids`: special tokens. They are the template's own, for no content is encoded to one."""
  return np.isin(ids, list(tokenizer.special_ids.values()))


def _encode(parts: Iterable[Part], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32, by_assistant bool), both [tokens]."""
  ids: list[int] = []
  by_assistant: list[bool] = []
  for is_special, run in itertools.groupby(parts, lambda part: bool(part.special)):
    if is_special:
      for part in run:
        special_id = _special_id(part, tokenizer)
        if special_id is not None:
          ids.append(special_id)
          by_assistant.append(part.by_assistant)
    else:
      header, answer = _encode_texts(list(run), tokenizer)
      ids += header + answer
      by_assistant += [False] * len(header) + [True] * len(answer)
  return np.array(ids, np.int32), np.array(by_assistant, bool)


def _encode_texts(texts: Sequence[Part], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
  """Ids of what stands between two special tokens: of a header, then of what the assistant says.

  Both are encoded as one text, as `apply_chat_template` does, unless a token would reach over the border between them:
  then each by itself.
  """
  header = ''.join(part.text for part in texts if not part.by_assistant)  # before the answer, in every template
  answer = ''.join(part.text for part in texts if part.by_assistant)
  header_ids = tokenizer.encode(header)
  if not answer:
    return header_ids, []
  whole = tokenizer.encode(header + answer)
  splits_at_border = whole[:len(header_ids)] == header_ids
  return header_ids, whole[len(header_ids):] if splits_at_border else tokenizer.encode(answer)


def _special_id(part: Part, tokenizer: Tokenizer) -> int | None:
  """None: one of OPTIONAL that the tokenizer lacks."""
  if part in (END_OF_TEXT, ANSWER_ENDS):
    return tokenizer.eot
  return tokenizer.special_ids.get(part.special)
