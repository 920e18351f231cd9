"""Conversations to rows: documents that a chat template writes, of which only what the assistant says is a target."""
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.data.packing.rows import Encoded, Encoder, RowSettings
from llm_jax.data.packing.text import TextRows
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.data.tokenizers.jinja_template import REASONING


class Dialogue(NamedTuple):
  """One document: what the assistant says in messages[start:] is learnt, but not in the messages of `unlearnt`.

  tools: descriptions of functions in JSON, for a model's own chat template.
  """
  messages: Sequence[chat_templates.Message]
  start: int = 0
  tools: Sequence[Mapping[str, Any]] | None = None
  unlearnt: tuple[int, ...] = ()

  @property
  def answers(self) -> list[str]:
    """What is learnt."""
    return [said(message) for i, message in enumerate(self.messages)
            if i >= self.start and message['role'] == 'assistant' and i not in self.unlearnt]

  @property
  def learnt(self) -> bytes:
    """UTF-8 of the answers."""
    return ''.join(self.answers).encode()

  @property
  def length(self) -> int:
    """Characters of all that is said."""
    return sum(len(said(message)) for message in self.messages)

  @property
  def text(self) -> str:
    """All that is said, a message a line."""
    return '\n'.join(said(message) for message in self.messages)


def said(message: chat_templates.Message) -> str:
  """The texts of a message: its content, what was thought before it, and its calls of tools."""
  texts: list[str] = []
  content = message.get('content')
  if isinstance(content, str):
    texts.append(content)
  elif isinstance(content, list):
    texts += [part['text'] for part in content if isinstance(part, Mapping) and isinstance(part.get('text'), str)]
  texts += [message[name] for name in REASONING if isinstance(message.get(name), str)]
  if message.get('tool_calls'):
    texts.append(json.dumps(message['tool_calls'], ensure_ascii=False))
  return '\n'.join(texts)


def encode_dialogue(dialogue: Dialogue, template: str | None, tokenizer: Tokenizer, mask_formatting: bool = False
                    ) -> Encoded:
  """The document as the template writes it. mask_formatting: special tokens are no targets."""
  ids, counts = chat_templates.render(dialogue.messages, template, tokenizer, dialogue.start, dialogue.tools,
                                      dialogue.unlearnt)
  if mask_formatting:
    counts &= ~chat_templates.formatting(ids, tokenizer)
  return Encoded((ids,), len(dialogue.learnt), counts)


@dataclasses.dataclass(frozen=True)
class ChatEncoder(Encoder[Dialogue]):
  """template: a chat template of `chat_templates`, which writes every document; None: none does."""
  template: str | None
  has_counts = True

  @property
  def versions(self) -> dict[str, int]:
    return {'chat': chat_templates.FORMAT}

  def check(self, tokenizer: Tokenizer) -> None:
    chat_templates.check_template(self.template, tokenizer)

  def length(self, document: Dialogue) -> int:
    return document.length

  def encode(self, documents: Sequence[Dialogue], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for dialogue in documents:
      yield encode_dialogue(dialogue, self.template, tokenizer)

  def text(self, document: Dialogue) -> str:
    return document.text

  def learnt_bytes(self, document: Dialogue, tokenizer: Tokenizer) -> Iterator[bytes]:
    yield document.learnt

  def make_rows(self, store: TokenStore, settings: RowSettings) -> TextRows:
    return TextRows(store, settings)
