"""Readers of conversations and of pairs of answers: each row is checked as it is read."""
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from llm_jax.config.errors import ConfigError
from llm_jax.config.source import OWN_TEMPLATE
from llm_jax.config.sources import (
  Conversations,
  Preferences,
  RankedAnswers,
  RatedAnswers,
  StandardLibraryChats,
  StandardLibraryPreferences,
  StandardLibraryRatedAnswers,
)
from llm_jax.data.packing.chats import ChatEncoder, Dialogue, said
from llm_jax.data.packing.pairs import Pair, PairEncoder
from llm_jax.data.packing.ranked import Ranked, RankedEncoder
from llm_jax.data.packing.rated import Rated, RatedEncoder
from llm_jax.data.sources import formats, row_entries, standard_library
from llm_jax.data.sources.documents import JSONL, Config, Reader, Record
from llm_jax.data.sources.formats import Files
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.jinja_template import Tools

BESIDE = ('system', 'tools')  # entries of a row that belong to its messages
Answers = TypeVar('Answers', Pair, Ranked, Rated)
Nothing = Literal['']
LARGEST_MARGIN = 1e6
NOTHING: Nothing = ''  # an empty document, which sources leave out


# ---------------------------------------------------------------------------------------------- files
class ConversationsReader(Reader[Conversations]):
  suffixes = JSONL

  def encoder(self) -> ChatEncoder:
    return ChatEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(read_conversation, source=self.config))


class PreferencesReader(Reader[Preferences]):
  suffixes = JSONL

  def encoder(self) -> PairEncoder:
    return PairEncoder(self.config.template, self.config.mask_formatting, self.config.has_margins,
                       self.config.has_soft_labels)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(
      read_preference, template=self.config.template, ignore=self.config.ignore, margin=self.config.margin,
      soft_label=self.config.soft_label))

  def selects(self) -> dict[str, Any]:
    fields = super().selects()
    for name in ('margin', 'soft_label'):
      if fields[name] is None:
        del fields[name]  # the rows are those of versions that knew none
    return fields


class RankedAnswersReader(Reader[RankedAnswers]):
  suffixes = JSONL

  def encoder(self) -> RankedEncoder:
    return RankedEncoder(self.config.template, self.config.answers)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(
      read_ranked, template=self.config.template, ignore=self.config.ignore, most=self.config.answers))


class RatedAnswersReader(Reader[RatedAnswers]):
  suffixes = JSONL

  def encoder(self) -> RatedEncoder:
    return RatedEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    return formats.jsonl(files, functools.partial(
      read_rated, template=self.config.template, ignore=self.config.ignore))


# ---------------------------------------------------------------------------------------------- the standard library
class LibraryReader(Reader[Config]):
  """Rows made of source code. A document's key is its file's: the functions of a file are in one split, that of the
  file itself."""

  def find(self) -> Files:
    return standard_library.source_files()

  def text_bytes(self, num_bytes: int) -> int:
    return num_bytes // standard_library.SHARE

  def selects(self) -> dict[str, Any]:
    return {**super().selects(), 'format': standard_library.FORMAT}


class StandardLibraryChatsReader(LibraryReader[StandardLibraryChats]):

  def encoder(self) -> ChatEncoder:
    return ChatEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    for name, messages in standard_library.conversations(files):
      yield name, functools.partial(conversation, messages, name, self.config.template)


class StandardLibraryPreferencesReader(LibraryReader[StandardLibraryPreferences]):

  def encoder(self) -> PairEncoder:
    return PairEncoder(self.config.template, self.config.mask_formatting)

  def records(self, files: Files) -> Iterable[Record]:
    for name, row in standard_library.preferences(files):
      yield name, functools.partial(preference, row, name, self.config.template)


class StandardLibraryRatedAnswersReader(LibraryReader[StandardLibraryRatedAnswers]):

  def encoder(self) -> RatedEncoder:
    return RatedEncoder(self.config.template)

  def records(self, files: Files) -> Iterable[Record]:
    for name, row in standard_library.rated_answers(files):
      yield name, functools.partial(rated, row, name, self.config.template)


# ---------------------------------------------------------------------------------------------- rows
def read_conversation(line: bytes, where: str, source: Conversations) -> Dialogue | Nothing:
  """One line of JSONL; NOTHING where it says that nothing of it is to be learnt. Raises ConfigError naming the row."""
  row = formats.json_object(line, where)
  messages = with_system(row, field(row, source.field, where), where, source.field)
  row_entries.refuse_unknown(row, (source.field, *BESIDE), source.ignore, where)
  dialogue = conversation(messages, where, source.template, source.field, read_tools(row, where), source.ignore)
  is_learnt = row_entries.is_learnt(row, where) and bool(dialogue.answers)
  return dialogue if is_learnt else NOTHING


def conversation(messages: Any, where: str, template: str | None, name: str = 'messages', tools: Tools = None,
                 ignore: Sequence[str] = ()) -> Dialogue:
  """The dialogue of a list of {'role', 'content'}, called `name` in messages. Raises ConfigError naming the row."""
  if not isinstance(messages, list | tuple):
    _check(messages, template, where, name)
  bare = [row_entries.bare_message(message, template, ignore, where, f'{name}[{i}]')
          for i, message in enumerate(messages)]
  dialogue = answered(Dialogue([message for message, _ in bare], tools=tools), template, where, name)
  roles = [message['role'] for message in dialogue.messages]
  unlearnt = tuple(i for i, (_, learnt) in enumerate(bare) if not learnt and roles[i] == 'assistant')
  return dialogue._replace(unlearnt=unlearnt)


def with_system(row: dict, messages: Any, where: str, name: str) -> Any:
  """The messages of a row, with what it has under "system" as the first of them. Raises ConfigError naming the row."""
  system = row.get('system')
  if system is None or not isinstance(messages, list):
    return messages
  if not isinstance(system, str):
    raise formats.bad(where, f'system is a {type(system).__name__}', 'give a text')
  if not system.strip():
    return messages
  if messages and isinstance(messages[0], dict) and messages[0].get('role') == 'system':
    raise formats.bad(where, f'system stands beside a system message in {name}', 'leave one of them out')
  return [{'role': 'system', 'content': system}, *messages]


def read_tools(row: dict, where: str) -> Tools:
  """What a row has under "tools": a list of JSON objects, or a text that is one. Raises ConfigError naming the row."""
  tools = row.get('tools')
  if isinstance(tools, str) and tools.strip():
    try:
      tools = json.loads(tools)
    except ValueError as error:
      raise formats.bad(where, 'tools is no JSON', f'{error}; give a list of descriptions of functions') from error
  if not tools:
    return None
  if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
    raise formats.bad(where, f'tools is a {type(tools).__name__}', 'give a list of descriptions of functions in JSON')
  return tools


def _read_answers(line: bytes, where: str, entries: Sequence[str], read: Callable[..., Answers], template: str | None,
                  ignore: Sequence[str]) -> Answers | Nothing:
  """What `read` makes of a line of JSONL with these entries; NOTHING where it says that it is not to be learnt."""
  row = formats.json_object(line, where)
  row_entries.refuse_unknown(row, (*entries, *BESIDE), ignore, where)
  answers = read(row, where, template, ignore)
  return answers if row_entries.is_learnt(row, where) else NOTHING


def read_preference(line: bytes, where: str, template: str | None, ignore: Sequence[str] = (),
                    margin: str | None = None, soft_label: str | None = None) -> Pair | Nothing:
  """One line of JSONL; NOTHING where it says that it is not to be learnt. Raises ConfigError naming the row.

  margin, soft_label: names of the entries that have the pair's; None: there is none.
  """
  def read(row: dict, where: str, template: str | None, ignore: Sequence[str]) -> Pair:
    pair = preference(row, where, template, ignore)
    if margin is not None:
      pair = pair._replace(margin=read_number(row, margin, where, LARGEST_MARGIN))
    if soft_label is not None:
      pair = pair._replace(soft_label=read_number(row, soft_label, where, 1.0))
    return pair

  named = [name for name in (margin, soft_label) if name is not None]
  return _read_answers(line, where, ('prompt', 'chosen', 'rejected', *named), read, template, ignore)


def read_number(row: dict, name: str, where: str, largest: float) -> float:
  """What the row has under `name`, a number from 0 on. Raises ConfigError naming the row."""
  number = field(row, name, where)
  is_number = isinstance(number, int | float) and not isinstance(number, bool)
  if not is_number or not 0 <= number <= largest:
    raise formats.bad(where, f'{name} is {number!r}', f'give a number from 0 to {largest:g}')
  return float(number)


def preference(row: dict, where: str, template: str | None, ignore: Sequence[str] = ()) -> Pair:
  """The two answers of {'prompt', 'chosen', 'rejected'}. Raises ConfigError naming the row."""
  prompt = read_prompt(row, where, template, ignore)
  chosen = answer_to(prompt, row, 'chosen', where, template, ignore)
  rejected = answer_to(prompt, row, 'rejected', where, template, ignore)
  if _written(chosen, template) == _written(rejected, template):
    raise formats.bad(where, 'chosen and rejected are equal', 'nothing is preferred: leave the row out')
  return Pair(chosen, rejected)


def read_ranked(line: bytes, where: str, template: str | None, ignore: Sequence[str], most: int) -> Ranked | Nothing:
  """One line of JSONL; NOTHING where it says that it is not to be learnt. Raises ConfigError naming the row.

  most: answers that a row has room for.
  """
  read = functools.partial(ranked, most=most)
  return _read_answers(line, where, ('prompt', 'answers', 'ranks'), read, template, ignore)


def ranked(row: dict, where: str, template: str | None, ignore: Sequence[str], most: int) -> Ranked:
  """The answers of {'prompt', 'answers', 'ranks'}. Raises ConfigError naming the row."""
  answers = field(row, 'answers', where)
  if not isinstance(answers, list) or len(answers) < 2:
    raise formats.bad(where, 'answers are no list of two or more', 'give all answers to the prompt, the best first')
  if len(answers) > most:
    raise formats.bad(where, f'it has {len(answers)} answers', f'the source has room for answers={most}: raise it')
  ranks = row.get('ranks', [*range(1, len(answers) + 1)])
  is_ranking = isinstance(ranks, list) and all(type(rank) is int and 1 <= rank <= most for rank in ranks)
  if not is_ranking or len(ranks) != len(answers):
    raise formats.bad(where, f'ranks are {ranks!r:.60}',
                      f'give each of the {len(answers)} answers a whole number from 1, the best, to {most}')
  if len(set(ranks)) == 1:
    raise formats.bad(where, 'all answers have one rank', 'nothing is preferred: leave the row out')
  prompt = read_prompt(row, where, template, ignore)
  named = {f'answers[{place}]': answer for place, answer in enumerate(answers)}
  dialogues = [answer_to(prompt, {**row, **named}, name, where, template, ignore) for name in named]
  return Ranked(dialogues, ranks)


def read_rated(line: bytes, where: str, template: str | None, ignore: Sequence[str] = ()) -> Rated | Nothing:
  """One line of JSONL; NOTHING where it says that it is not to be learnt. Raises ConfigError naming the row."""
  return _read_answers(line, where, ('prompt', 'completion', 'label'), rated, template, ignore)


def rated(row: dict, where: str, template: str | None, ignore: Sequence[str] = ()) -> Rated:
  """The answer of {'prompt', 'completion', 'label'}. Raises ConfigError naming the row."""
  label = field(row, 'label', where)
  if not isinstance(label, bool):
    raise formats.bad(where, f'label is {label!r}', 'give true for a desirable answer, false for another')
  prompt = read_prompt(row, where, template, ignore)
  return Rated(answer_to(prompt, row, 'completion', where, template, ignore), label)


def read_prompt(row: dict, where: str, template: str | None, ignore: Sequence[str] = ()
                ) -> list[chat_templates.Message]:
  """The messages of a row's 'prompt', the last of them the user's. Raises ConfigError naming the row."""
  messages = [message for message, _ in _messages(row, 'prompt', 'user', where, template, ignore)]
  prompt = with_system(row, messages, where, 'prompt')
  _check(prompt, template, where, 'prompt', read_tools(row, where))
  last_role = prompt[-1]['role']
  is_answered_next = last_role == 'user' or template == OWN_TEMPLATE and last_role != 'assistant'
  if not is_answered_next:
    raise formats.bad(where, 'the prompt does not end with the user', 'put what the assistant says into the answers')
  return prompt


def answer_to(prompt: list[chat_templates.Message], row: dict, name: str, where: str, template: str | None,
              ignore: Sequence[str] = ()) -> Dialogue:
  """The prompt and the answer that the row has under `name`, which alone is learnt. Raises ConfigError naming the
  row."""
  found = _messages(row, name, 'assistant', where, template, ignore)
  answer = [message for message, _ in found]
  for i, (message, learnt) in enumerate(found):
    if not learnt and isinstance(message, Mapping) and message.get('role') == 'assistant':
      raise formats.bad(where, f'{name}[{i}] is not to be learnt', 'an answer is judged as a whole: put what is not '
                        'learnt into the prompt, or take the mark out')
  if answer[:len(prompt)] == prompt:
    raise formats.bad(where, f'{name} begins with the prompt', 'leave the prompt out of it')
  dialogue = Dialogue([*prompt, *answer], len(prompt), read_tools(row, where))
  return answered(dialogue, template, where, f'prompt + {name}')


def answered(dialogue: Dialogue, template: str | None, where: str, name: str) -> Dialogue:
  """The dialogue itself, where it holds something to learn."""
  _check(dialogue.messages, template, where, name, dialogue.tools)
  if not dialogue.answers:
    raise formats.bad(where, f'{name} has no assistant turn', 'nothing to learn from: leave the row out')
  return dialogue


def field(row: dict, name: str, where: str) -> Any:
  """What a row has under `name`. Raises ConfigError naming the row where it has nothing."""
  if name not in row:
    raise formats.bad(where, f'no field {name!r}', f'found {sorted(row)[:8]}')
  return row[name]


def _written(dialogue: Dialogue, template: str | None) -> list[Any]:
  """Its messages after the prompt, as the template writes them."""
  answer = dialogue.messages[dialogue.start:]
  if template == OWN_TEMPLATE:
    return list(answer)
  return [(message['role'], chat_templates.trimmed(message['content'], template)) for message in answer]


def _messages(row: dict, name: str, role: str, where: str, template: str | None, ignore: Sequence[str]
              ) -> list[tuple[Any, bool]]:
  """The field's messages, of which a text is one of `role`, and whether each is to be learnt."""
  value = field(row, name, where)
  if not isinstance(value, str | list):
    raise formats.bad(where, f'{name} is a {type(value).__name__}', "give a text, or a list of {'role', 'content'}")
  messages = [{'role': role, 'content': value}] if isinstance(value, str) else value
  return [row_entries.bare_message(message, template, ignore, where, f'{name}[{i}]')
          for i, message in enumerate(messages)]


def _check(messages: Any, template: str | None, where: str, name: str, tools: Tools = None) -> None:
  try:
    chat_templates.check(messages, template, name, tools)
  except ConfigError as error:
    raise formats.bad(where, f'{error.field} = {error.value!r}', error.hint) from error
  for message in messages:
    formats.check_unicode(said(message), where)
