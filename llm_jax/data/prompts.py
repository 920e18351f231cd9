"""The prompts of a stage that learns from its own answers: read, encoded, and put into an order."""
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from llm_jax.config.data import Data
from llm_jax.config.errors import ConfigError, located
from llm_jax.data import fingerprints
from llm_jax.data.mixture import make_mixture
from llm_jax.data.sources.documents import DocumentSource, Split, open_source
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
  """text: as rewards and people see it.   ids: as the model does.   columns: what else its row has.

  messages: what the chat template wrote, or the text that the model goes on with.
  """
  text: str
  ids: tuple[int, ...]
  columns: dict[str, Any]
  messages: Any = ''


class PromptSet:
  """The prompts of one split, held in memory.

  fingerprint: what determines them and their order, by component.
  stop_tokens: ids that end an answer.   end: ids that stand behind these where the answer is the last.
  """

  def __init__(self, data: Data, sources: Sequence[DocumentSource], prompts: Sequence[Sequence[Prompt]], seed: int,
               tokenizer: Tokenizer):
    self._sources = sources
    self._prompts = prompts
    self._tokenizer = tokenizer
    self._mixture = make_mixture(data.sources, 1, ())
    self._orders = [_order(len(part), seed, i) for i, part in enumerate(prompts)]
    self.tokenizer = tokenizer
    self.stop_tokens: tuple[int, ...] = sources[0].encoder.stop_tokens(tokenizer)
    self.end: tuple[int, ...] = sources[0].encoder.end(tokenizer)
    self.fingerprint = {
      'data': ', '.join(f'{source.kind}:{source.fingerprint[:16]} val_fraction={source.val_fraction}'
                        for source in sources),
      'weights': ', '.join(repr(weighted.weight) for weighted in data.sources),
      'tokenizer': tokenizer.fingerprint,
      'seed': str(seed),
    }

  def __len__(self) -> int:
    return sum(len(part) for part in self._prompts)

  def at(self, number: int) -> Prompt:
    """The prompt of a global number: sources mixed by weight, each shuffled anew every time it is gone through."""
    source, count = self._mixture.locate(number)
    return self._prompts[source][self._orders[source][count]]

  def answer_ids(self, prompt: Prompt, column: str) -> tuple[int, ...]:
    """The answer that the prompt's row has under `column`, as its template writes it, with what ends it.

    Raises:
      KeyError: the row has none.
    """
    if column not in prompt.columns:
      raise KeyError(f'the row of the prompt {prompt.text[:60]!r} has no {column!r}, only {sorted(prompt.columns)}')
    return self._sources[0].encoder.answer_ids(prompt.messages, str(prompt.columns[column]), self._tokenizer)

  def reply_ids(self, content: str) -> tuple[int, ...]:
    """What stands behind the end of an answer to which a function that it called replies."""
    return chat_templates.reply_ids(content, self._sources[0].encoder.template, self._tokenizer)

  def first(self, count: int) -> list[Prompt]:
    """Up to `count` prompts, spread over all of them, in the order in which they are stored."""
    every = [prompt for part in self._prompts for prompt in part]
    count = min(count, len(every))
    return [every[i * len(every) // count] for i in range(count)]

  def changed_files(self) -> list[str]:
    """Paths of files that no longer hold what they did when they were read."""
    return [file for source in self._sources for file in source.changed_files()]


def open_prompts(data: Data, tokenizer: Tokenizer, split: Split, *, seed: int, longest: int,
                 cache_dir: str | os.PathLike | None = None) -> PromptSet | None:
  """Reads and encodes the prompts of a split; None where nothing is set aside for validation.

  longest: the most ids of a prompt, so that its answer fits behind it.

  Raises:
    ConfigError: for a bad row, a prompt that is too long, and a training split without prompts; names the source.
  """
  sources: list[DocumentSource] = []
  prompts: list[list[Prompt]] = []
  for i, weighted in enumerate(data.sources):
    with located(f'data.sources[{i}].source'):
      source = open_source(weighted.source, cache_dir)
      found = [_encode(source, key, document, tokenizer, longest) for key, document in source.documents(split)]
      if split == 'train' and not found:
        raise ConfigError('val_fraction', source.val_fraction, 'leaves no prompt to train on: lower it')
    sources.append(source)
    prompts.append(found)
  return PromptSet(data, sources, prompts, seed, tokenizer) if any(prompts) else None


def _encode(source: DocumentSource, key: str, document: Any, tokenizer: Tokenizer, longest: int) -> Prompt:
  ids = source.encoder.ids(document, tokenizer)
  if len(ids) > longest:
    raise ConfigError(key, f'{len(ids)} tokens', f'with rollout.max_new_tokens behind it the prompt passes seq_len: at '
                      f'most {longest} fit, so lengthen seq_len, shorten the answers or leave it out')
  return Prompt(document.text, tuple(ids), document.columns, document.messages)


def _order(count: int, seed: int, source: int) -> Any:
  """An endless order of so many prompts, shuffled anew in each epoch."""
  import grain
  if count == 0:
    return ()
  number = int(fingerprints.of(['prompts', seed, source])[:8], 16)
  return grain.MapDataset.range(count).shuffle(seed=number).repeat()
