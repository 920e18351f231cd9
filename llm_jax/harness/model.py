"""A model of ours as lm-evaluation-harness sees one: it scores continuations and whole texts, and writes answers.

It goes into `lm_eval.simple_evaluate(model=...)` as it is.
"""
import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import GREEDY, Greedy, Sampling
from llm_jax.decode.score import BATCH_SIZE, score
from llm_jax.harness.text import HarnessText, Pair
from llm_jax.modules.execution import Execution

NEW_TOKENS = 256  # where a task does not say how long an answer may be, as in the `hf` backend


@dataclasses.dataclass(frozen=True)
class Reader:
  """What reads and writes tokens.

  stop_tokens: ids that end an answer.
  heartbeat: called before every batch.
  """
  config: Architecture
  params: Any
  execution: Execution
  stop_tokens: tuple[int, ...]
  batch_size: int = BATCH_SIZE
  share_prefixes: bool = True
  heartbeat: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Writing:
  """How a task wants its answers: what ends them, how long they may be, and how they are drawn."""
  stops: tuple[str, ...]
  max_new_tokens: int
  sampling: Greedy | Sampling


class HarnessModel(LM):
  """Several processes run the same requests; the harness sees one (`world_size` 1)."""

  def __init__(self, text: HarnessText, reader: Reader, seed: int = 0):
    super().__init__()
    self.text = text
    self.reader = reader
    self._key = jax.random.key(seed)

  # -------------------------------------------------------------------------------------------- likelihoods
  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    scored = self._score([self.text.encode_pair(*request.args) for request in requests])
    for request, result in zip(requests, scored, strict=True):
      self.cache_hook.add_partial('loglikelihood', request.args, result)
    return scored

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    windows = [self.text.windows(request.args[0]) for request in requests]
    scored = iter(self._score([pair for of_text in windows for pair in of_text]))
    found = []
    for request, of_text in zip(requests, windows, strict=True):
      total = sum(next(scored)[0] for _ in of_text)
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
      found.append(total)
    return found

  def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    reader = self.reader
    pairs = [self.text.cut(pair) for pair in pairs]
    scored = score(reader.config, reader.params, [context for context, _ in pairs], [behind for _, behind in pairs],
                   execution=reader.execution, batch_size=reader.batch_size, share_prefixes=reader.share_prefixes,
                   heartbeat=reader.heartbeat)
    return [(one.total, one.is_greedy) for one in scored]

  # -------------------------------------------------------------------------------------------- generation
  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Requests for one prompt that are drawn at random share its reading, and each draws for itself."""
    groups: dict[tuple[Writing, tuple[int, ...]], list[int]] = collections.defaultdict(list)
    for i, request in enumerate(requests):
      prompt, options = arguments(request)
      writing = writing_of(options)
      context = prompt_ids(self.text, prompt, writing)
      groups[writing, context].append(i)
    by_kind: dict[tuple[Writing, int], list[tuple[int, ...]]] = collections.defaultdict(list)
    for (writing, context), members in groups.items():
      by_kind[writing, self._draws(writing, members)].append(context)
    found: dict[int, str] = {}
    for (writing, samples), contexts in by_kind.items():
      for context, texts in zip(contexts, self._write(contexts, writing, samples), strict=True):
        members = groups[writing, context]
        found |= dict(zip(members, texts * len(members) if samples == 1 else texts, strict=False))
    for i, request in enumerate(requests):
      self.cache_hook.add_partial('generate_until', request.args, found[i])
    return [found[i] for i in range(len(requests))]

  @staticmethod
  def _draws(writing: Writing, members: Sequence[int]) -> int:
    """How many texts are written for as many equal requests: the most probable one is the same for all."""
    match writing.sampling:
      case Greedy():
        return 1
      case Sampling():
        return len(members)

  def _write(self, contexts: Sequence[tuple[int, ...]], writing: Writing, samples: int) -> list[list[str]]:
    """`samples` texts behind each context."""
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    prompts_at_a_time = max(1, self.reader.batch_size // samples)
    found: dict[int, list[str]] = {}
    for start in range(0, len(order), prompts_at_a_time):
      chosen = order[start:start + prompts_at_a_time]
      self.reader.heartbeat()
      self._key, key = jax.random.split(self._key)
      texts = self._batch([contexts[i] for i in chosen], writing, samples, key)
      for place, i in enumerate(chosen):
        found[i] = texts[place * samples:(place + 1) * samples]
    return [found[i] for i in range(len(contexts))]

  def _batch(self, contexts: Sequence[tuple[int, ...]], writing: Writing, samples: int, key: jax.Array) -> list[str]:
    reader = self.reader

    def ends(row: int, tokens: list[int]) -> bool:
      return self._cut(tokens, writing.stops)[1]

    can_end = bool(writing.stops) and not reader.config.switch_lengths
    out = generate(reader.config, reader.params, contexts, writing.max_new_tokens, writing.sampling, key,
                   stop_tokens=reader.stop_tokens, execution=reader.execution, samples=samples,
                   share_prefix=reader.share_prefixes, ends=ends if can_end else None)
    return [self._cut(tokens, writing.stops)[0] for tokens in out.tokens]

  def _cut(self, tokens: list[int], stops: Sequence[str]) -> tuple[str, bool]:
    """The text of an answer up to what ends it, without control tokens, and whether a stop ends it.

    A control token is a stop by its whole name; letters of the name are no text.
    """
    special = self.text.tokenizer.special_ids
    stop_ids = {special[stop] for stop in stops if stop in special}
    before = list(itertools.takewhile(lambda token: token not in stop_ids, tokens))
    control = {*self.reader.stop_tokens, *special.values()}
    written = self.text.tokenizer.decode([token for token in before if token not in control])
    cut = written
    for stop in stops:
      cut = cut.split(stop)[0]
    return cut, len(before) < len(tokens) or cut != written

  # -------------------------------------------------------------------------------------------- conversations
  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return self.text.render(chat_history, add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """Its name, which the harness writes into its results."""
    return self.text.template if chat_template else None

  @property
  def tokenizer_name(self) -> str:
    """Tells the harness's cache of requests apart; so does the template, which decides the texts."""
    return f'{self.text.tokenizer.fingerprint[:16]}-{self.text.template}'


def arguments(request: Instance) -> Any:
  """What a request asks: a context and a continuation, a text alone, or a prompt and how to answer it."""
  return request.args


def writing_of(options: Mapping[str, Any]) -> Writing:
  """A task's `generation_kwargs`."""
  values: Any = normalize_gen_kwargs(dict(options), NEW_TOKENS)
  until = values.get('until') or []
  stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
  sampling: Greedy | Sampling = GREEDY
  if values.get('do_sample') and values.get('temperature', 1.0) > 0:
    top_k = values.get('top_k') or None
    sampling = Sampling(values.get('temperature', 1.0), top_k, values.get('top_p'), values.get('min_p') or None)
  return Writing(stops, values['max_gen_toks'], sampling)


def prompt_ids(text: HarnessText, context: str, writing: Writing) -> tuple[int, ...]:
  """The ids of a prompt, cut to what leaves room for the answer.

  Raises:
    ConfigError: the answer alone is longer than what the model reads.
  """
  room = text.max_length - writing.max_new_tokens
  require(room > 0, 'max_gen_toks', writing.max_new_tokens,
          f'the model reads {text.max_length} tokens, so none is left for the prompt: set --max_gen_toks')
  ids = text.encode(context) or [text.prefix_token]
  return tuple(ids[-room:])
