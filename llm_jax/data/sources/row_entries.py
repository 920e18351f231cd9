"""The entries of a row of JSON lines, and of its messages: which are read, which say that something is not to be
learnt, and which are refused because nothing would read them."""
from collections.abc import Collection, Mapping
from typing import Any

from llm_jax.config.source import OWN_TEMPLATE
from llm_jax.data.sources import formats

MESSAGE = ('role', 'content')
# 'weight': 0 as OpenAI and mistral-finetune write it; 'train': false and 'trainable': false as other trainers do.
SWITCHES = ('train', 'trainable')
WEIGHT = 'weight'
MARKS = (WEIGHT, *SWITCHES)


def is_learnt(entries: Mapping[str, Any], where: str, name: str = '') -> bool:
  """Whether a row, or its message called `name`, is to be learnt: unless one of MARKS says no.

  Raises: ConfigError naming the row for a mark that is neither yes nor no.
  """
  learnt = True
  for mark in MARKS:
    value = entries.get(mark)
    if value is None:
      continue
    path = f'{name}.{mark}' if name else mark
    if mark in SWITCHES and not isinstance(value, bool):
      raise formats.bad(where, f'{path} is {value!r}', 'give true or false')
    is_weight = isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1)
    if mark == WEIGHT and not is_weight:
      raise formats.bad(where, f'{path} is {value!r}', 'nothing is learnt by halves: give 0 or 1')
    learnt = learnt and bool(value)
  return learnt


def refuse_unknown(entries: Mapping[str, Any], known: Collection[str], ignore: Collection[str], where: str) -> None:
  """Refuses an entry of a row that holds something and that nothing reads; templates look at those of messages.

  Args:
    known: the entries that are read; MARKS are read everywhere.
    ignore: entries that the source says may be left unread.
  """
  for entry, value in entries.items():
    if _is_empty(value) or entry in known or entry in MARKS or entry in ignore:
      continue
    hint = f'take it out of the rows, or say ignore=({entry!r},) in the source'
    raise formats.bad(where, f'{entry} is not read', hint)


def bare_message(message: Any, template: str | None, ignore: Collection[str], where: str, name: str
                 ) -> tuple[Any, bool]:
  """(A message as a template is to see it, whether it is to be learnt). Gone are MARKS and what the source ignores; for
  a named template also entries that hold nothing. What is no message is left as it is.

  Raises: ConfigError naming the row, as `is_learnt` does; and where it is not the assistant's, and says that it is to
    be learnt.
  """
  if not isinstance(message, Mapping):
    return message, True
  learnt = is_learnt(message, where, name)
  says_so = [mark for mark in MARKS if message.get(mark) is not None]
  if says_so and learnt and message.get('role') != 'assistant':
    raise formats.bad(where, f'{name}.{says_so[0]} is {message[says_so[0]]!r}',
                      'only what the assistant says is learnt: take it out of the other messages')
  has_own = template == OWN_TEMPLATE
  bare = {entry: value for entry, value in message.items()
          if entry not in MARKS and entry not in ignore and (has_own or entry in MESSAGE or not _is_empty(value))}
  return bare, learnt


def _is_empty(value: Any) -> bool:
  return value is None or value == [] or value == {}
