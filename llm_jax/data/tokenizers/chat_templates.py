"""Conversations as token ids: chat templates, exact to what was published, and which tokens the assistant says.

A conversation is a list of {'role', 'content'}: at most one system message, first, then user and assistant by turns.
What a template writes is the whole document: the ids are those of the template alone, with no end of text around them,
so that a model trained on them meets the same ids wherever that template is applied (`apply_chat_template` of
transformers gives the same).

Special tokens are put in by id. Contents go through the tokenizer, which turns no text into a special id: nobody can
end a turn, or open one, by writing the name of a special token. (The marks of 'plain', and llama2's [INST] and <<SYS>>,
are text, as published, and can be written by anyone.)
"""
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.sources import TEMPLATES
from llm_jax.data.tokenizers.base import Tokenizer

FORMAT = 1  # raise it when a template writes other ids for the same messages
ROLES = ('system', 'user', 'assistant')

Message = Mapping[str, str]


class Part(NamedTuple):
  """A stretch of a rendered conversation: text, or a special token. `said`: by the assistant, its end included."""
  text: str = ''
  special: str = ''
  said: bool = False


# Stand for the tokenizer's own end of text, whatever its name.
END_OF_TEXT = Part(special='end of text')
ANSWER_ENDS = Part(special='end of text', said=True)


# ---------------------------------------------------------------------------------------------- templates
def _plain(messages: Sequence[Message]) -> Iterator[Part]:
  """No special token but the end of text, which is also at the beginning, as in every document."""
  yield END_OF_TEXT
  for message in messages:
    match message['role']:
      case 'assistant':
        yield Part('Assistant:')
        yield Part(f' {message["content"]}', said=True)
        yield ANSWER_ENDS
      case role:
        yield Part(f'{role.title()}: {message["content"]}\n\n')


def _chatml(messages: Sequence[Message]) -> Iterator[Part]:
  """OpenAI's Chat Markup Language (openai-python, chatml.md), as Qwen and many others use it; nothing is trimmed."""
  for message in messages:
    said = message['role'] == 'assistant'
    yield Part(special='<|im_start|>')
    yield Part(f'{message["role"]}\n')
    yield Part(message['content'], said=said)
    yield Part(special='<|im_end|>', said=said)
    yield Part('\n')


def _llama2(messages: Sequence[Message]) -> Iterator[Part]:
  """Llama 2 Chat (Touvron et al. 2023, appendix A.3.3; the `chat_template` of Llama-2-7b-chat-hf)."""
  system = ''
  for message in messages:
    content = message['content']
    match message['role']:
      case 'system':
        system = f'<<SYS>>\n{content}\n<</SYS>>\n\n'
      case 'user':
        yield Part(special='<s>')
        yield Part(f'[INST] {(system + content).strip()} [/INST]')
        system = ''
      case 'assistant':
        yield Part(f' {content.strip()} ', said=True)
        yield Part(special='</s>', said=True)


def _llama3(messages: Sequence[Message]) -> Iterator[Part]:
  """Llama 3 Instruct (the `chat_template` of Meta-Llama-3-8B-Instruct)."""
  yield Part(special='<|begin_of_text|>')
  for message in messages:
    said = message['role'] == 'assistant'
    yield Part(special='<|start_header_id|>')
    yield Part(message['role'])
    yield Part(special='<|end_header_id|>')
    yield Part('\n\n')
    yield Part(message['content'].strip(), said=said)
    yield Part(special='<|eot_id|>', said=said)


WRITERS = dict(zip(TEMPLATES, (_plain, _chatml, _llama2, _llama3), strict=True))
TRIMMED = ('llama2', 'llama3')  # templates that cut white space off both ends of what is said
# Written where the tokenizer has it: a tokenizer without it has no beginning of text anywhere.
OPTIONAL = ('<|begin_of_text|>',)
EXAMPLE = ({'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'})


@functools.cache  # asked for every conversation that is read
def _example(template: str) -> tuple[Part, ...]:
  return tuple(WRITERS[template](EXAMPLE))


# ---------------------------------------------------------------------------------------------- what is refused
def check_template(template: str, tokenizer: Tokenizer) -> None:
  """Refuses a template whose special tokens the tokenizer lacks, or has where it writes text; names both."""
  require(template in TEMPLATES, 'template', template, f'use one of {TEMPLATES}')
  needs = {part.special for part in _example(template)} - {'', END_OF_TEXT.special, *OPTIONAL}
  missing = tuple(sorted(needs - tokenizer.special_ids.keys()))
  require(not missing, 'template', template, f'the tokenizer lacks its special tokens {missing}, it has '
          f"{tuple(tokenizer.special_ids)}: use BPE(special_tokens={tuple(sorted(needs))}), a file that has them, "
          "or 'plain'")
  text = ''.join(part.text for part in _example(template))
  other = tuple(sorted(name for name in tokenizer.special_ids if name in text))  # as Mistral 7B v0.3 has [INST]
  require(not other, 'template', template, f'it writes {other} as text, and to this tokenizer they are special tokens: '
          'use the template that the model was trained with, or another tokenizer')


def check(messages: Sequence[Message], template: str, name: str = 'messages') -> None:
  """Refuses what no template can write: ConfigError names the message, the value and what to change."""
  require(isinstance(messages, list | tuple), name, type(messages).__name__, "give a list of {'role', 'content'}")
  require(len(messages) > 0, name, messages, 'empty: give at least one message')
  before = None
  for i, message in enumerate(messages):
    where = f'{name}[{i}]'
    require(isinstance(message, Mapping), where, type(message).__name__, "give {'role', 'content'}")
    role, content = message.get('role'), message.get('content')
    require(role in ROLES, f'{where}.role', role, f'template {template!r} lacks it: use one of {ROLES}')
    require(isinstance(content, str), f'{where}.content', type(content).__name__, 'give a text')
    require(bool(content.strip()), f'{where}.content', content[:20], 'empty: leave the message out, or say something')
    expected = ('user',) if before in ('system', 'assistant') else ('system', 'user') if i == 0 else ('assistant',)
    require(role in expected, f'{where}.role', role, f'expected {" or ".join(expected)}: one system message at most, '
            'first, then user and assistant by turns')
    before = role


def trimmed(content: str, template: str) -> str:
  """What the template writes of a content."""
  return content.strip() if template in TRIMMED else content


# ---------------------------------------------------------------------------------------------- ids
def render(messages: Sequence[Message], template: str, tokenizer: Tokenizer,
           start: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [tokens], counts bool [tokens]) of a conversation.

  `counts` marks what the assistant says in every turn from message `start` on, with the token that ends its turn: the
  targets that are learnt. The ids begin with `prompt_ids` of the messages before any answer: no token reaches over the
  border between a header and an answer, where the model begins to write. Raises ConfigError for a conversation without
  an assistant's turn, and as `check` and `check_template` do.
  """
  check_template(template, tokenizer)
  check(messages, template)
  require(any(message['role'] == 'assistant' for message in messages[start:]), 'messages',
          [message['role'] for message in messages][:8], 'no assistant turn: nothing to learn from, leave the row out')
  ids, said = _encode(WRITERS[template](messages), tokenizer)
  before = len(prompt_ids(messages[:start], template, tokenizer)) if start else 0
  return ids, said & (np.arange(len(ids)) >= before)


def prompt_ids(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> np.ndarray:
  """int32 ids of a conversation that ends with the user's turn, and of the header behind which the assistant speaks."""
  check_template(template, tokenizer)
  check(messages, template)
  require(messages[-1]['role'] == 'user', f'messages[{len(messages) - 1}].role', messages[-1]['role'],
          'end with a message of the user, which the assistant is to answer')
  parts = list(WRITERS[template]([*messages, EXAMPLE[1]]))
  answer = max(i for i, part in enumerate(parts) if part.said and part.text)
  return _encode(parts[:answer], tokenizer)[0]


def end_of_turn(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that stop an answer: the template's end of turn, then the end of text where that is another."""
  check_template(template, tokenizer)
  [end] = [part for part in _example(template) if part.said and part.special]
  return tuple(dict.fromkeys((_control_id(end, tokenizer), tokenizer.eot)))


def formatting(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """bool, the shape of `ids`: special tokens. They are the template's own, for no content is encoded to one."""
  return np.isin(ids, list(tokenizer.special_ids.values()))


def _encode(parts: Iterable[Part], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """(ids, said). Text between two special tokens is encoded as one, as `apply_chat_template` does, unless a token would
  reach over the border to what the assistant says: then each side is encoded by itself."""
  ids, said = [], []
  for is_special, run in itertools.groupby(parts, lambda part: bool(part.special)):
    run = list(run)
    if is_special:
      found = [(_control_id(part, tokenizer), part.said) for part in run]
      ids += [i for i, _ in found if i is not None]
      said += [by_assistant for i, by_assistant in found if i is not None]
    else:
      header = ''.join(part.text for part in run if not part.said)  # comes before the answer in every template
      answer = ''.join(part.text for part in run if part.said)
      before, after = tokenizer.encode(header), []
      if answer:
        whole = tokenizer.encode(header + answer)
        after = whole[len(before):] if whole[:len(before)] == before else tokenizer.encode(answer)
      ids += before + after
      said += [False] * len(before) + [True] * len(after)
  return np.array(ids, np.int32), np.array(said, bool)


def _control_id(part: Part, tokenizer: Tokenizer) -> int | None:
  """None: one of OPTIONAL that the tokenizer lacks."""
  return tokenizer.eot if part is END_OF_TEXT or part is ANSWER_ENDS else tokenizer.special_ids.get(part.special)
