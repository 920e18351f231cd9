"""The texts of lm-evaluation-harness as token ids: where a text begins, chat templates, and what cannot be scored.

The harness passes texts around, also those that a chat template has written. There the names of control tokens are put
between two marks, and only a name between marks is that token: what stands in a question, or in a choice behind it, is
never one. (The `hf` backend of the harness reads the name of a control token as the token wherever it stands.)
"""
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.chat_templates import Message, render_prompt
from llm_jax.data.tokenizers.rendered import CLOSE, OPEN, Marker, Rendered

RECENT = 64  # texts whose ids are remembered

Pair = tuple[list[int], list[int]]  # the ids of a context, and of the continuation behind it


@dataclasses.dataclass(frozen=True)
class HarnessText:
  """How a model reads texts.

  template: the chat template of conversations; None: it has none.
  begins: whether a text begins with what a document begins with (`Tokenizer.begin`). A conversation never does: its
    template writes the whole of it.
  vocab_size: rows of the model's embedding.
  max_length: the most tokens that it reads at a time; longer contexts lose their beginning.
  like_hf: rolling texts are scored as the `hf` backend scores them, which predicts the beginning itself too.
  """
  tokenizer: Tokenizer
  template: str | None
  begins: bool
  vocab_size: int
  max_length: int
  like_hf: bool = False

  @property
  def prefix_token(self) -> int:
    """What stands before a continuation without context."""
    return [*self.tokenizer.begin, self.tokenizer.eot][0]

  @property
  def bos_rule(self) -> str:
    """Where a text begins, in words."""
    if self.template is not None:
      return f'none of its own: the chat template {self.template!r} writes all of a conversation'
    if self.begins and self.tokenizer.begin:
      return f'{self.tokenizer.decode(self.tokenizer.begin)!r} before every text, as documents begin'
    return 'none'

  # -------------------------------------------------------------------------------------------- ids
  def encode(self, text: str, begins: bool | None = None) -> list[int]:
    """The ids of a text.   begins: as the field; None: as it says, and never before a conversation."""
    is_conversation = OPEN in text
    ids = self._ids(text)
    if begins is None:
      begins = self.begins and not is_conversation and self.template is None
    return [*(self.tokenizer.begin if begins else ()), *ids]

  @functools.cached_property
  def _ids(self) -> Callable[[str], tuple[int, ...]]:
    """Remembers the last texts: the choices of a question have one context."""
    @functools.lru_cache(maxsize=RECENT)
    def ids(text: str) -> tuple[int, ...]:
      found = self._encode_conversation(text) if OPEN in text else self.tokenizer.encode(text)
      return tuple(map(int, found))

    return ids

  def _encode_conversation(self, text: str) -> list[int]:
    """The ids of a text in which control tokens stand between marks."""
    parts = self._marked.split(text)  # a text, a name, a text, ...
    turned = [self._marker.mark(part) if i % 2 == 0 else part for i, part in enumerate(parts)]
    return self.tokenizer.encode_rendered(self._marker.rendered(''.join(turned)))[0]

  def encode_pair(self, context: str, continuation: str) -> Pair:
    """The ids of a context and of the continuation behind it: encoded as one text and cut where the context ends. White
    space at the end of the context goes to the continuation.

    Raises:
      ConfigError: there is nothing to score, or a token lies across the cut and nothing stands behind it.
    """
    if not context:
      behind = self.encode(continuation, begins=False)
      require(len(behind) > 0, 'continuation', continuation, 'empty: there is nothing to score')
      begins = behind[0] == self.prefix_token
      pair = (behind[:1], behind[1:]) if begins else ([self.prefix_token], behind)
    else:
      bare = context.rstrip()
      continuation = context[len(bare):] + continuation
      length = len(self.encode(bare))
      whole = self.encode(bare + continuation)
      pair = whole[:length], whole[length:]
    require(len(pair[0]) > 0, 'context', context, 'white space alone: give a text, or none')
    require(len(pair[1]) > 0, 'continuation', continuation[:40],
            f'a token lies across its beginning, behind {shown(context)[-40:]!r}: let it begin where a word does')
    return pair

  def windows(self, text: str) -> list[Pair]:
    """A whole text in pieces that the model can read, each behind one token, every token once; nothing for ''."""
    ids = self.encode(text) if self.like_hf else self.encode(text, begins=False)
    windows: list[Pair] = []
    if ids:
      windows.append(([self.prefix_token], ids[:self.max_length]))
    for start in range(self.max_length, len(ids), self.max_length):
      end = min(start + self.max_length, len(ids))
      context = ids[max(0, end - self.max_length - 1):start]
      windows.append((context, ids[start:end]))
    return windows

  def cut(self, pair: Pair) -> Pair:
    """The same, of whose context only the end is left where both are longer than the model reads."""
    context, continuation = pair
    room = self.max_length + 1 - len(continuation)  # the last token is predicted, and not read
    return context[-max(room, 1):], continuation[-self.max_length:]

  # -------------------------------------------------------------------------------------------- conversations
  def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """A conversation as its template writes it, with control tokens between marks.

    add_generation_prompt: it ends with the header behind which the assistant speaks; else with its last message, which
      goes on. (The harness calls it so.)
    """
    if self.template is None:
      raise ConfigError('template', None, 'the model has no chat template: name one, or leave the conversation out')
    if add_generation_prompt:
      return self._guarding(render_prompt(messages, self.template, self.tokenizer))
    text = self.render(messages[:-1])
    return text + joint(text) + messages[-1]['content']

  def _guarding(self, rendered: Rendered) -> str:
    name = lambda found: f'{OPEN}{found[0]}{CLOSE}'
    return ''.join(piece.text if piece.is_guarded else self._names.sub(name, piece.text) for piece in rendered.pieces)

  @functools.cached_property
  def _special(self) -> tuple[str, ...]:
    return self.tokenizer.added_names()[0]

  @functools.cached_property
  def _marker(self) -> Marker:
    return Marker(self._special)

  @functools.cached_property
  def _names(self) -> re.Pattern[str]:
    longest_first = sorted(filter(None, self._special), key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)) or '(?!)')  # (?!) matches nothing

  @functools.cached_property
  def _marked(self) -> re.Pattern[str]:
    return re.compile(f'{OPEN}({self._names.pattern}){CLOSE}')


def joint(prompt: str) -> str:
  """What stands between a prompt and its answer."""
  return '' if prompt.endswith(('\n', CLOSE)) else ' '


def shown(text: str) -> str:
  """A text of the harness as a person reads it."""
  return text.replace(OPEN, '').replace(CLOSE, '')
