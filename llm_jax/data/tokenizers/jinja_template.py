"""Chat templates in Jinja, which models bring along, rendered as `transformers` renders them.

They are programs of somebody else: they run in Jinja's sandbox, which keeps them from everything but the messages.
"""
import datetime
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.rendered import OPEN, Marker, Rendered, Span

if TYPE_CHECKING:
  import jinja2

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None

HAS_MARKS = re.compile(r'\{%-?\s*generation\s*-?%\}')
# Stand around what {% generation %} marks in a rendered text; contents cannot hold them.
BEGIN, END = '\U000f0002', '\U000f0003'
TAG = re.compile(r'</?\w+>')
WORD = re.compile(r'[\w-]+')
WHOLE_MESSAGE = re.compile(r'\b(messages?|m|msg)(\[[^]]*\])?\s*\|\s*tojson')
REASONING = ('reasoning_content', 'thinking', 'reasoning')  # names of one thing; templates read the first
QUESTION = {'role': 'user', 'content': 'question'}
ANSWER = {'role': 'assistant', 'content': 'answer'}


class JinjaTemplate:
  """A chat template of a model.

  source: in Jinja.
  variables: special tokens by role, which the template may use.
  special: names of special tokens. No content turns into one of them.
  others: names of other added tokens that the template writes. Nobody can write them either, but the assistant those
    that are tags, such as <think>.
  """

  def __init__(self, source: str, variables: Mapping[str, str], special: Sequence[str], others: Sequence[str]):
    self._source = source
    self._variables = dict(variables)
    self._special, self._others = tuple(special), tuple(others)
    names = (*special, *others)
    self._marker = Marker(names)
    longest_first = sorted(names, key=len, reverse=True)
    self._control = re.compile(f'(?<!{OPEN})(?:{"|".join(map(re.escape, longest_first)) or "(?!)"})')
    self._has_marks = HAS_MARKS.search(source) is not None

  def render(self, messages: Sequence[Message], tools: Tools = None, start: int = 0,
             unlearnt: Collection[int] = ()) -> Rendered:
    """A conversation, of which the assistant's turns from message `start` on are learnt, but for those of `unlearnt`.

    What is learnt is between the template's {% generation %} marks where it has some. Otherwise a turn begins where the
    template lets the model begin, with the messages before it, and ends with the control token that ends it.

    Raises:
      ConfigError: the template refuses the messages, or it cannot be told what the assistant says.
    """
    messages, tools = self._guarded(messages, tools)
    text, marked = _unmarked(self._write(messages, tools))
    speaks = [i for i, message in enumerate(messages) if message.get('role') == 'assistant']
    if self._has_marks:
      can_choose = len(marked) == len(speaks)
      require(can_choose or not (start or unlearnt), 'messages', f'{len(marked)} marks for {len(speaks)} turns', "the "
              "model's chat template does not mark every turn of the assistant: name another template")
      learnt = [span for span, i in zip(marked, speaks, strict=True)
                if i >= start and i not in unlearnt] if can_choose else marked
    else:
      turns = [i for i in speaks if i >= start and i not in unlearnt]
      learnt = [self._turn(messages, tools, i, text) for i in turns]
    return self._marker.rendered(text, learnt)

  def refuse_unread(self, messages: Sequence[Message]) -> None:
    """Refuses an entry of a message that the template does not speak of: nothing would be learnt of it.

    A template that writes a message out whole reads all of it.
    """
    if WHOLE_MESSAGE.search(self._source):
      return
    for i, message in enumerate(messages):
      for entry, value in message.items():
        names = REASONING if entry in REASONING else (entry,)
        is_read = any(re.search(rf'\b{re.escape(name)}\b', self._source) for name in names)
        is_plain = entry in ('role', 'content') or value is None
        require(is_plain or is_read, f'messages[{i}].{entry}', str(value)[:80], "the model's chat template does "
                f'not read it: leave it out, or say ignore=({entry!r},) in the source')

  def prompt(self, messages: Sequence[Message], tools: Tools = None) -> Rendered:
    """A conversation up to where the assistant begins to speak."""
    messages, tools = self._guarded(messages, tools)
    return self._marker.rendered(_unmarked(self._write(messages, tools, answer=True))[0])

  @functools.cached_property
  def end_of_turn(self) -> str:
    """The name of the control token that ends what the assistant says; '' where there is none."""
    return self._end_of_answer([QUESTION, ANSWER])

  @functools.cached_property
  def _ends_of_turns(self) -> set[str]:
    """The same of a last turn and of one that another follows, which some templates end otherwise."""
    try:
      return {self.end_of_turn, self._end_of_answer([QUESTION, ANSWER, QUESTION])} - {''}
    except ConfigError:  # it takes no such conversation
      return {self.end_of_turn} - {''}

  def _end_of_answer(self, messages: Sequence[Message]) -> str:
    text = _unmarked(self._write(messages, None))[0]
    found = self._control.search(text, max(text.rfind(ANSWER['content']), 0))
    return found[0] if found else ''

  @functools.cached_property
  def _assistant_marker(self) -> Marker:
    """For what the assistant says: it may write tags, which templates take thoughts and calls apart by."""
    return Marker((*self._special, *(name for name in self._others if not TAG.fullmatch(name))))

  def _guarded(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], Any]:
    """The same with the names of control tokens marked, as the template is to see them."""
    found: list[dict[str, Any]] = []
    for message in messages:
      marker = self._assistant_marker if message.get('role') == 'assistant' else self._marker
      marked = marker.mark(_without_forged(dict(message)))
      if WORD.fullmatch(str(message.get('role'))):  # a template compares it, and may write it where a token is a word
        marked['role'] = message['role']
      found.append(_as_templates_read(marked))
    return found, None if tools is None else self._marker.mark(_without_forged(list(tools)))

  def _write(self, messages: Sequence[Message], tools: Any, answer: bool = False) -> str:
    try:
      return compiled(self._source).render(messages=messages, tools=tools, documents=None,
                                           add_generation_prompt=answer, **self._variables)
    except Exception as error:  # a template may do anything that is wrong
      roles = [message.get('role') for message in messages]
      raise ConfigError('messages', roles[:8], f"the model's chat template refuses them: {error}") from error

  # -------------------------------------------------------------------------------------------- turns without marks
  def _turn(self, messages: Sequence[Message], tools: Any, i: int, text: str) -> Span:
    """Where message i is written, from where the model begins to write to the token that ends its turn."""
    begin = self._begin(messages, tools, i, text)
    following = self._write(messages[:i + 1], tools)
    is_prefix = text.startswith(following)
    spoken = _spoken(messages[i])
    # With what follows the turn may be written in another way; without it, it is the last that is written.
    place = text.rfind(spoken, begin, len(following)) if is_prefix else text.find(spoken, begin)
    behind = place + len(spoken) if spoken else begin
    limit = len(following) if is_prefix else _next_message(messages, i, text, behind)
    end = self._end(text, behind, limit, is_prefix, is_silent=not spoken)
    said = str(messages[i].get('content'))[:80]
    require(place >= 0 and end is not None, f'messages[{i}]', said, "the model's chat template does not write this "
            'answer where the assistant speaks: put {% generation %} marks into it, or name another template')
    assert end is not None
    return begin, end

  def _begin(self, messages: Sequence[Message], tools: Any, i: int, text: str) -> int:
    """Where the model begins to write message i."""
    prompt = self._write(messages[:i], tools, answer=True)
    if text.startswith(prompt):
      return len(prompt)
    before = self._write(messages[:i], tools)
    require(text.startswith(before), f'messages[{i}]', messages[i].get('role'), "the model's chat template writes what "
            'is before it in another way once it is there, so that it cannot be told where the assistant begins: put '
            '{% generation %} marks into it, or name another template')
    # The prompt goes on in another way, such as with a thought that is left out here: as far as both are the same, and
    # not into the answer, which may begin like it.
    shared = len(before)
    while shared < min(len(text), len(prompt)) and text[shared] == prompt[shared]:
      shared += 1
    spoken = _spoken(messages[i])
    answer = text.find(spoken, len(before)) if spoken else -1
    return shared if answer < 0 else min(shared, answer)

  def _end(self, text: str, behind: int, limit: int, is_prefix: bool, is_silent: bool) -> int | None:
    """Behind the token that ends a turn; None where it cannot be told.

    behind: where the content ends.   limit: where the turn ends at the latest, and if `is_prefix` exactly.
    is_silent: whether there is no content, but a call of a tool.
    """
    controls = [*self._control.finditer(text, behind, limit)]
    ends = [found.end() for found in controls if found[0] in self._ends_of_turns]
    if ends:
      place = ends[-1] if is_prefix and is_silent else ends[0]
      following = [found for found in controls if found.start() >= place]
      is_whole = is_prefix and ''.join(found[0] for found in following) == text[place:limit].strip()
      touches = bool(following) and following[0].start() == place
      return following[-1].end() if is_whole and touches else place
    if not is_prefix:
      return None
    if controls and not text[controls[-1].end():limit].strip():
      return controls[-1].end()
    return limit


def _next_message(messages: Sequence[Message], i: int, text: str, behind: int) -> int:
  """Where in the text the content of the message after i is, at the earliest; its end where that is not known."""
  spoken = _spoken(messages[i + 1]) if i + 1 < len(messages) else ''
  place = text.find(spoken, behind) if spoken else -1
  return len(text) if place < 0 else place


def literal_text(source: str) -> str:
  """All texts that a template holds, joined by characters that no token has."""
  import jinja2
  import jinja2.nodes
  try:
    tree = environment().parse(source)
  except jinja2.TemplateError as error:
    raise _not_a_template(error) from error
  written = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
  constants = [node.value for node in tree.find_all(jinja2.nodes.Const)]
  return '\0'.join([*written, *(value for value in constants if isinstance(value, str))])


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> 'jinja2.Template':
  """Raises ConfigError for what is no template."""
  import jinja2
  try:
    return environment().from_string(source)
  except jinja2.TemplateError as error:
    raise _not_a_template(error) from error


def _not_a_template(error: Exception) -> ConfigError:
  return ConfigError('chat_template', str(error), 'not a template in Jinja: correct it in the folder of the model')


@functools.cache
def environment() -> 'jinja2.Environment':
  """As `transformers` sets it up: templates are written for its white space, filters and functions."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says."""
    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.CallBlock(self.call_method('_enclose'), [], [], body).set_lineno(line)

    def _enclose(self, caller: Any) -> str:
      return f'{BEGIN}{caller()}{END}'

  class Namespace(jinja2.utils.Namespace):
    """A namespace that holds no private attribute, by which a template might leave the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
      if name.startswith('_'):
        raise jinja2.exceptions.SecurityError(f'a namespace holds no private attribute: {name!r}')
      super().__setitem__(name, value)

  def namespace(*given: Any, **values: Any) -> Namespace:
    found = Namespace()
    for name, value in dict(*given, **values).items():
      found[name] = value
    return found

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  found = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
  found.filters['tojson'] = tojson
  found.globals |= {
    'raise_exception': raise_exception,
    'strftime_now': lambda form: datetime.datetime.now().strftime(form),
    'namespace': namespace,
    'dict': lambda *given, **values: dict(*given, **values),  # the class itself has more than a template needs
  }
  return found


def _spoken(message: Message) -> str:
  """What a message says for sure: many templates leave out what was thought before an answer."""
  said = message.get('content')
  return said.rsplit('</think>')[-1].strip() if isinstance(said, str) else ''


def _as_templates_read(message: dict[str, Any]) -> dict[str, Any]:
  """A message as transformers hands it to a template: without what is None, its reasoning under both its names."""
  message = {key: value for key, value in message.items() if value is not None}
  reasoning = next((message[key] for key in REASONING if key in message), None)
  return message if reasoning is None else {'thinking': reasoning, **message, 'reasoning_content': reasoning}


def _without_forged(value: Any) -> Any:
  """The same without the characters that stand for {% generation %} marks."""
  if isinstance(value, str):
    return value.replace(BEGIN, '').replace(END, '')
  if isinstance(value, dict):
    return {key: _without_forged(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_without_forged(entry) for entry in value]
  return value


def _unmarked(text: str) -> tuple[str, list[Span]]:
  """(the text without {% generation %} marks, what stood between them)."""
  parts: list[str] = []
  spans: list[Span] = []
  length = 0
  begin = 0
  for part in re.split(f'([{BEGIN}{END}])', text):
    if part == BEGIN:
      begin = length
    elif part == END:
      spans.append((begin, length))
    else:
      parts.append(part)
      length += len(part)
  return ''.join(parts), spans
