"""A conversation with a model at the terminal, line by line."""
import sys
from collections.abc import Iterable
from typing import Protocol

from launch.sampler import Sampler
from llm_jax.data.tokenizers.base import opened
from llm_jax.data.tokenizers.chat_templates import Message


class Conversation(Protocol):
  """What was said so far. All of it is read again for each answer."""

  def reset(self) -> None:
    """Forgets everything."""
    ...

  def answer(self, line: str, turn: int) -> None:
    """Prints the model's answer to a line. A line that cannot be answered is reported and forgotten."""
    ...


def chat(sampler: Sampler, lines: Iterable[str]) -> None:
  """Answers line after line until /quit."""
  conversation: Conversation = TextConversation(sampler) if sampler.template is None else ChatConversation(sampler)
  for turn, line in enumerate(lines):
    match line.strip():
      case '/quit':
        return
      case '/reset':
        conversation.reset()
      case _:
        conversation.answer(line, turn)


class ChatConversation:
  """Messages, written out by a chat template."""

  def __init__(self, sampler: Sampler):
    self._sampler = sampler
    self.reset()

  def reset(self) -> None:
    self._messages: list[Message] = [*self._sampler.opening]

  def answer(self, line: str, turn: int) -> None:
    sampler = self._sampler
    self._messages.append({'role': 'user', 'content': line})
    new: list[int] = []
    try:
      tokens, max_new_tokens = sampler.fit(sampler.prompt_ids(self._messages))
      sampler.show(sampler.answer(tokens, max_new_tokens, turn, 0), new)
    except KeyboardInterrupt:
      print()
    except ValueError as error:  # from the template or the request
      report(error)
    text = sampler.tokenizer.decode(new).strip()  # the templates put their own white space around it
    if text:
      self._messages.append({'role': 'assistant', 'content': text})
    else:
      self._messages.pop()


class TextConversation:
  """One text that the lines and the model's continuations make together."""

  def __init__(self, sampler: Sampler):
    self._sampler = sampler
    self.reset()

  def reset(self) -> None:
    self._tokens = [*self._sampler.tokenizer.begin]

  def answer(self, line: str, turn: int) -> None:
    sampler = self._sampler
    before = len(self._tokens)
    try:
      self._tokens += sampler.tokenizer.encode(self._separator(line) + line)
      self._tokens = self._tokens or opened(sampler.tokenizer, ())
      tokens, max_new_tokens = sampler.fit(self._tokens)
      sampler.show(sampler.answer(tokens, max_new_tokens, turn, 0), self._tokens)
    except KeyboardInterrupt:
      print()
    except ValueError as error:  # from the tokenizer or the request
      report(error)
      del self._tokens[before:]

  def _separator(self, line: str) -> str:
    """A line begins on a line of its own. An empty one only asks the model to go on."""
    is_first = len(self._tokens) == len(self._sampler.tokenizer.begin)
    ends_line = self._sampler.tokenizer.decode(self._tokens[-1:]).endswith('\n')
    return '' if is_first or ends_line or not line else '\n'


def report(error: ValueError) -> None:
  """Prints an error in one line: the conversation goes on without what caused it."""
  print('error: ' + ' '.join(str(error).split()), file=sys.stderr, flush=True)
