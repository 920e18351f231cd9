"""Conversations as token ids: chat templates, exact to what was published, and which tokens the assistant says.

A conversation is a list of {'role', 'content'}: at most one system message, first, then user and assistant by turns.
(The template 'model', which an imported model brings along, decides by itself what it takes.)
Without a template, which is None here, contents stand one behind the other, each encoded by itself, behind what a
document of the tokenizer begins with; the end of text is behind what the assistant says.
What a template writes is the whole document: the ids are those of the template alone, with no end of text around them,
so that a model trained on them meets the same ids wherever that template is applied (`apply_chat_template` of
transformers gives the same).

A conversation is written as one text and encoded as one, in which the names of special tokens are these tokens. Where
contents hold such a name it is text: nobody can end a turn, or open one, by writing it. (The headers of 'plain', and
llama2's [INST] and <<SYS>>, are text, as published, and can be written by anyone.)
"""
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.source import NAMED_TEMPLATES, OWN_TEMPLATE, TEMPLATES
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.jinja_template import JinjaTemplate, Tools, literal_text
from llm_jax.data.tokenizers.rendered import Marker, Rendered, Span, in_spans
from llm_jax.data.tokenizers.template_parts import (
  ANSWER,
  ANSWER_ENDS,
  BEGINNING,
  OPTIONAL,
  TRIMMED,
  WRITERS,
  Message,
  Part,
  example,
)

FORMAT = 2  # raise it when a template writes other ids for the same messages
ROLES = ('system', 'user', 'assistant')
WRITTEN = ('role', 'content')  # entries of a message that the named templates write
FLAGS = ('weight', 'train', 'trainable')  # entries that say what is learnt, and that no template writes


# ---------------------------------------------------------------------------------------------- what is refused
def check_template(template: str | None, tokenizer: Tokenizer) -> None:
  """Refuses a template whose special tokens the tokenizer lacks, or has where it writes text; names both."""
  if template is None:
    return
  require(template in TEMPLATES, 'template', template, f'use one of {TEMPLATES}')
  if template == OWN_TEMPLATE:
    require(bool(tokenizer.chat_templates), 'template', template, 'no chat template stands beside this tokenizer, in '
            f'tokenizer_config.json or as chat_template.jinja: use one of {NAMED_TEMPLATES}')
    return
  parts = example(template)
  needs = {part.special for part in parts} - {'', BEGINNING.special, ANSWER_ENDS.special, *OPTIONAL}
  missing = tuple(sorted(needs - tokenizer.special_ids.keys()))
  require(not missing, 'template', template, f'the tokenizer lacks its special tokens {missing}, it has '
          f"{tuple(tokenizer.special_ids)}: use BPE(special_tokens={tuple(sorted(needs))}), a file that has them, "
          "or 'plain'")
  text = ''.join(part.text for part in parts)
  # Mistral 7B v0.3 has llama2's [INST] as a special token, for example.
  written_as_text = tuple(sorted(name for name in tokenizer.special_ids if name in text))
  require(not written_as_text, 'template', template, f'it writes {written_as_text} as text, and to this tokenizer they '
          'are special tokens: use the template that the model was trained with, or another tokenizer')


def check(messages: Sequence[Message], template: str | None, name: str = 'messages', tools: Tools = None) -> None:
  """Refuses what no template can write: ConfigError names the message, the value and what to change."""
  require(isinstance(messages, list | tuple), name, type(messages).__name__, "give a list of {'role', 'content'}")
  require(len(messages) > 0, name, messages, 'empty: give at least one message')
  if template == OWN_TEMPLATE:
    for i, message in enumerate(messages):
      is_message = isinstance(message, Mapping) and isinstance(message.get('role'), str)
      require(is_message, f'{name}[{i}]', type(message).__name__, "give {'role', 'content'}")
    return
  require(not tools, 'tools', str(tools)[:80], f'template {template!r} does not write them: leave them out, or use '
          f'template={OWN_TEMPLATE!r} of a model whose chat template does')
  previous_role = None
  for i, message in enumerate(messages):
    where = f'{name}[{i}]'
    _check_message(message, template, where)
    role = message['role']
    expected = _expected_roles(previous_role)
    require(role in expected, f'{where}.role', role, f'expected {" or ".join(expected)}: one system message at most, '
            'first, then user and assistant by turns')
    previous_role = role


def _check_message(message: Message, template: str | None, where: str) -> None:
  require(isinstance(message, Mapping), where, type(message).__name__, "give {'role', 'content'}")
  role = message.get('role')
  require(role in ROLES, f'{where}.role', role, f'template {template!r} lacks it: use one of {ROLES}')
  for entry, value in message.items():
    is_known = entry in (*WRITTEN, *FLAGS) or value is None
    require(is_known, f'{where}.{entry}', str(value)[:80], f'template {template!r} does not write it: leave it out, or '
            f'say ignore=({entry!r},) in the source, or use template={OWN_TEMPLATE!r} of a model whose chat template '
            'does')
  content = message.get('content')
  require(isinstance(content, str), f'{where}.content', type(content).__name__, 'give a text')
  text = message['content']
  require(bool(text.strip()), f'{where}.content', text[:20], 'empty: leave the message out, or say something')


def _expected_roles(previous: str | None) -> tuple[str, ...]:
  """previous: the role of the message before; None: there is none."""
  if previous is None:
    return ('system', 'user')
  return ('assistant',) if previous == 'user' else ('user',)


def trimmed(content: str, template: str | None) -> str:
  """What the template writes of a content."""
  return content.strip() if template in TRIMMED else content


# ---------------------------------------------------------------------------------------------- ids
def render(messages: Sequence[Message], template: str | None, tokenizer: Tokenizer, start: int = 0,
           tools: Tools = None, unlearnt: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [tokens], counts bool [tokens]) of a conversation.

  `counts` marks what the assistant says in every turn from message `start` on, with the token that ends its turn: the
  targets that are learnt. A token that also spells the end of the header before an answer is one of them.

  Args:
    tools: descriptions of functions in JSON, for a model's own template.
    unlearnt: messages of the assistant that are no targets all the same.

  Raises:
    ConfigError: a conversation without an assistant's turn, and as `check` and `check_template` do.
  """
  check_template(template, tokenizer)
  check(messages, template, tools=tools)
  roles = [message['role'] for message in messages]
  require('assistant' in roles[start:], 'messages', roles[:8],
          'no assistant turn: nothing to learn from, leave the row out')
  if template is None:
    return _without_template(messages, tokenizer, start, unlearnt)
  if template == OWN_TEMPLATE:
    own = own_template(tokenizer, bool(tools))
    rendered = own.render(messages, tools, start, unlearnt)
    own.refuse_unread(messages)
  else:
    parts_before = lambda i: len(list(WRITERS[template](messages[:i])))
    left_out = {*range(parts_before(start))}
    for i in unlearnt:
      left_out |= {*range(parts_before(i), parts_before(i + 1))}
    rendered = _written(WRITERS[template](messages), tokenizer, left_out)
  ids, places = tokenizer.encode_rendered(rendered)
  return np.array(ids, np.int32), np.array(in_spans(places, rendered.learnt), bool)


def _without_template(messages: Sequence[Message], tokenizer: Tokenizer, start: int, unlearnt: Collection[int]
                      ) -> tuple[np.ndarray, np.ndarray]:
  """What `render` gives without a template."""
  ids = [*tokenizer.begin]
  counts = [False] * len(ids)
  for i, message in enumerate(messages):
    by_assistant = message['role'] == 'assistant'
    said = [*tokenizer.encode(message['content']), *([tokenizer.eot] if by_assistant else [])]
    ids += said
    counts += [by_assistant and i >= start and i not in unlearnt] * len(said)
  return np.array(ids, np.int32), np.array(counts, bool)


def prompt_ids(messages: Sequence[Message], template: str | None, tokenizer: Tokenizer, tools: Tools = None
               ) -> np.ndarray:
  """int32 ids of a conversation that the assistant is to answer, and of the header behind which it speaks."""
  if template is None:
    check(messages, template)
    return _without_template(messages, tokenizer, 0, ())[0]
  rendered = render_prompt(messages, template, tokenizer, tools)
  return np.array(tokenizer.encode_rendered(rendered)[0], np.int32)


def render_prompt(messages: Sequence[Message], template: str, tokenizer: Tokenizer, tools: Tools = None) -> Rendered:
  """The text of `prompt_ids`."""
  check_template(template, tokenizer)
  check(messages, template, tools=tools)
  last_role = messages[-1]['role']
  expected = last_role == 'user' or template == OWN_TEMPLATE and last_role != 'assistant'
  require(expected, f'messages[{len(messages) - 1}].role', last_role,
          'end with a message of the user, which the assistant is to answer')
  if template == OWN_TEMPLATE:
    return own_template(tokenizer, bool(tools)).prompt(messages, tools)
  parts = list(WRITERS[template]([*messages, ANSWER]))
  answer = max(i for i, part in enumerate(parts) if part.by_assistant and part.text)
  return _written(parts[:answer], tokenizer)


def end_of_turn(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that stop an answer: the template's end of turn, then the end of text where that is another."""
  check_template(template, tokenizer)
  if template == OWN_TEMPLATE:
    name = own_template(tokenizer).end_of_turn
    ids = tokenizer.encode_rendered(Marker(()).rendered(name))[0] if name else []
    return tuple(dict.fromkeys((*ids, tokenizer.eot)))
  [end] = [part for part in example(template) if part.by_assistant and part.special]
  end_id = tokenizer.eot if end == ANSWER_ENDS else tokenizer.special_ids[end.special]
  return tuple(dict.fromkeys((end_id, tokenizer.eot)))


def after_turn(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids that a template writes behind the end of the last answer: a line break in 'chatml', nothing in others."""
  said = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  ids = render(said, template, tokenizer)[0].tolist()
  end, *_ = end_of_turn(template, tokenizer)
  return tuple(ids[len(ids) - ids[::-1].index(end):]) if end in ids else ()


def reply_ids(content: str, template: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Ids behind the end of an answer to which a function that it called replies, up to where the assistant speaks again.

  A model's own template has a message for the reply, of role 'tool'; a named one has it said by the user. Without a
  template it is the text.
  """
  if template is None:
    return tuple(tokenizer.encode(content))
  said: list[Message] = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  is_own = template == OWN_TEMPLATE
  reply = {'role': 'tool' if is_own else 'user', 'content': content if is_own else in_tags(content)}
  end, *_ = end_of_turn(template, tokenizer)
  num_ends = render(said, template, tokenizer)[0].tolist().count(end)
  ids = prompt_ids([*said, reply], template, tokenizer).tolist()
  for _ in range(num_ends):
    ids = ids[ids.index(end) + 1:]
  return tuple(ids)


def in_tags(content: str) -> str:
  """What a function replies, as Qwen's template writes it."""
  return f'<tool_response>\n{content}\n</tool_response>'


def formatting(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """bool, the shape of `ids`: special tokens. They are the template's own, for no content is encoded to one."""
  return np.isin(ids, list(tokenizer.special_ids.values()))


@functools.lru_cache(maxsize=8)  # every conversation that is read needs it
def own_template(tokenizer: Tokenizer, for_tools: bool = False) -> JinjaTemplate:
  """The chat template that the tokenizer's folder brings; that for tools where it has one of its own."""
  templates = tokenizer.chat_templates
  name = 'tool_use' if for_tools and 'tool_use' in templates else 'default'
  require(name in templates, 'template', OWN_TEMPLATE, f'the tokenizer comes with chat templates {tuple(templates)} '
          f"and none of them is its default: use one of {NAMED_TEMPLATES}, or name one of its own 'default'")
  source = templates[name]
  special, others = tokenizer.added_names()
  written = literal_text(source)
  return JinjaTemplate(source, tokenizer.named, special, [name for name in others if name in written])


@functools.lru_cache(maxsize=8)
def _marker(tokenizer: Tokenizer) -> Marker:
  special, _ = tokenizer.added_names()
  return Marker(special)


def _written(parts: Iterable[Part], tokenizer: Tokenizer, left_out: Collection[int] = ()) -> Rendered:
  """What a named template writes, as one text.   left_out: parts that are not learnt, whoever says them."""
  marker = _marker(tokenizer)
  texts: list[str] = []
  learnt: list[Span] = []
  length = 0
  for i, part in enumerate(parts):
    text = _name(part, tokenizer) if part.special else marker.mark(part.text)
    texts.append(text)
    if part.by_assistant and i not in left_out:
      learnt.append((length, length + len(text)))
    length += len(text)
  return marker.rendered(''.join(texts), learnt)


def _name(part: Part, tokenizer: Tokenizer) -> str:
  """The names of the special tokens that a part stands for; '' for one of OPTIONAL that the tokenizer lacks."""
  if part == BEGINNING:
    return names_of(tokenizer.begin, tokenizer)
  if part == ANSWER_ENDS:
    return names_of((tokenizer.eot,), tokenizer)
  return part.special if part.special in tokenizer.special_ids else ''


def names_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
  """Special tokens by their names, as one text."""
  names = {i: name for name, i in tokenizer.special_ids.items()}
  return ''.join(names[i] if i in names else tokenizer.decode([i]) for i in ids)
