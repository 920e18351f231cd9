"""A run's model, its tokenizer, and how to draw from it; prints what the model writes."""
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from launch.sample_flags import SampleFlags
from launch.saved_models import check_tokenizer, find_checkpoint, read_model
from launch.streaming import text_pieces, up_to_stop
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.run import Run
from llm_jax.config.source import OWN_TEMPLATE
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer, opened
from llm_jax.data.tokenizers.chat_templates import Message, end_of_turn, prompt_ids
from llm_jax.decode.beam import beam_search
from llm_jax.decode.generate import generate, stream
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.decode.speculative import stream_speculated
from llm_jax.hf.configs import generation_ids, listed
from llm_jax.modules.execution import Execution, dtype_of

OVERLAP = 8  # tokens before an answer that are decoded with it: some tokenizers drop the space of a first word


class Sampler:
  """A model that continues text, or answers messages where it has a chat template.

  Args:
    flags: checked.
    draft_run: the run of the other model that drafts, if any.

  Raises:
    ConfigError: a setting of the sampling is wrong, or the draft has another tokenizer.
    CheckpointError: see `find_checkpoint`.
  """

  def __init__(self, flags: SampleFlags, run: Run, draft_run: Run | None):
    folder = flags.checkpoint / 'tokenizer'
    self.flags = flags
    self.sampling = make_sampling(flags)
    self.execution = Execution(dtype_of(flags.dtype or run.dtype))
    self.tokenizer = load_tokenizer(folder)
    stage, checkpoint = find_checkpoint('checkpoint', flags.checkpoint, run, flags.stage, flags.step)
    check_tokenizer(checkpoint, self.tokenizer)
    self.model = run.model_of(stage)
    known = flags.template or stage.data.template or brought_template(run, self.tokenizer)
    self.template = None if flags.raw else known
    self.stop_tokens = text_ends(folder, self.tokenizer)
    if self.template is not None:
      self.stop_tokens = tuple({*end_of_turn(self.template, self.tokenizer), *self.stop_tokens})
    require(self.template is not None or flags.system is None, '--system', flags.system,
            'without a chat template text is continued: put it before the prompt, or name the --template')
    self.opening: list[Message] = [] if flags.system is None else [{'role': 'system', 'content': flags.system}]
    self.draft = None if draft_run is None else self._open_draft(draft_run)
    self.params = jax.device_put(read_model(run, flags.checkpoint, stage, checkpoint))

  def _open_draft(self, run: Run) -> tuple[Architecture, Any]:
    """The model that drafts and its parameters."""
    workdir = self.flags.draft_workdir
    assert workdir is not None
    tokenizer = load_tokenizer(workdir / 'tokenizer')
    require(tokenizer.fingerprint == self.tokenizer.fingerprint, '--draft', self.flags.draft,
            'has another tokenizer than --checkpoint: use models trained with one tokenizer')
    stage, checkpoint = find_checkpoint('draft', workdir, run)
    check_tokenizer(checkpoint, self.tokenizer)
    return run.model_of(stage), jax.device_put(read_model(run, workdir, stage, checkpoint))

  # -------------------------------------------------------------------------------------------- one prompt
  def write(self, prompt: str) -> None:
    """Prints the prompt and its continuations, or a chat model's answers, as they come."""
    if self.template is None:
      tokens = opened(self.tokenizer, self.tokenizer.encode(prompt))
      shown = prompt
    else:
      tokens = self.prompt_ids([*self.opening, {'role': 'user', 'content': prompt}])
      shown = ''
    tokens, max_new_tokens = self.fit(tokens)
    for number in range(self.flags.num_samples):
      if self.flags.num_samples > 1:
        print(f'--- sample {number + 1}')
      print(shown, end='', flush=True)
      if self.flags.log_probs:
        self.write_log_probs(tokens, max_new_tokens, number)
      else:
        self.show(self.answer(tokens, max_new_tokens, 0, number), list(tokens))

  def write_log_probs(self, tokens: list[int], max_new_tokens: int, number: int) -> None:
    """Prints a continuation, and then its tokens one by one with their log-probabilities."""
    out = generate(self.model, self.params, [tokens], max_new_tokens, self.sampling, self.rng(0, number),
                   stop_tokens=self.stop_tokens, execution=self.execution, log_probs=True)
    assert out.log_probs is not None
    whole = list(tokens)
    self.show(iter(out.tokens[0]), whole)
    new = whole[len(tokens):]
    for token, log_prob in zip(new, out.log_probs[0], strict=False):  # a stop may have cut the text
      print(f'{log_prob:9.4f}  {self.tokenizer.decode([token])!r}')

  # -------------------------------------------------------------------------------------------- what chats need too
  def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation, up to where the assistant answers."""
    assert self.template is not None
    return prompt_ids(messages, self.template, self.tokenizer).tolist()

  def fit(self, tokens: list[int]) -> tuple[list[int], int]:
    """The tokens to read and the number of new ones, cut to what learned positions can hold."""
    models = [self.model] if self.draft is None else [self.model, self.draft[0]]
    lengths = [model.max_length for model in models if model.max_length is not None]
    max_new_tokens = self.flags.max_new_tokens
    limit = min(lengths, default=None)
    if limit is None or len(tokens) + max_new_tokens <= limit:
      return list(tokens), max_new_tokens
    max_new_tokens = min(max_new_tokens, max(limit - len(tokens), limit // 2))
    kept = tokens[-(limit - max_new_tokens):]
    cut = f', of the prompt only its last {len(kept)} tokens are read' if len(kept) < len(tokens) else ''
    print(f'the model has {limit} positions: {max_new_tokens} new tokens at most{cut}', file=sys.stderr)
    return kept, max_new_tokens

  def answer(self, tokens: list[int], max_new_tokens: int, turn: int, number: int) -> Iterator[int]:
    """The tokens that follow, as they come."""
    request = (self.model, self.params, [tokens], max_new_tokens)
    if self.flags.beams:
      beams = beam_search(*request, self.flags.beams, stop_tokens=self.stop_tokens, execution=self.execution)
      return iter(beams.tokens[0][number])
    rng = self.rng(turn, number)
    if self.flags.draft:
      pieces = stream_speculated(*request, self.sampling, rng, draft=self.draft, draft_tokens=self.flags.draft_tokens,
                                 stop_tokens=self.stop_tokens, execution=self.execution)
    else:
      pieces = stream(*request, self.sampling, rng, stop_tokens=self.stop_tokens, execution=self.execution)
    return (token for [row] in pieces for token in row)

  def rng(self, turn: int, number: int) -> jax.Array:
    """Of one answer: `number` tells the samples of a prompt apart, `turn` those of a chat."""
    key = jax.random.key(self.flags.seed or 0)
    return jax.random.fold_in(jax.random.fold_in(key, turn), number)

  def show(self, answer: Iterator[int], tokens: list[int]) -> None:
    """Prints an answer up to a stop. Its tokens are appended to `tokens`, those that it follows."""
    def new_tokens() -> Iterator[int]:
      for token in answer:
        if token in self.stop_tokens:
          return
        tokens.append(token)
        yield token

    for text in up_to_stop(self.flags.stop, text_pieces(self.tokenizer, tokens[-OVERLAP:], new_tokens())):
      print(text, end='', flush=True)
    print()


def brought_template(run: Run, tokenizer: Tokenizer) -> str | None:
  """The chat template that a model brought which was imported, and has not been trained here."""
  is_imported = len(run.stages) == 1 and run.stages[0].steps == 0
  return OWN_TEMPLATE if is_imported and tokenizer.chat_templates else None


def text_ends(folder: pathlib.Path, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The ids that end a text: an imported model's own, else the end of text.

  folder: the run's tokenizer, with the `generation_config.json` of a model that was imported.
  """
  path = folder / 'generation_config.json'
  ids = generation_ids(path.read_bytes() if path.is_file() else b'{}')
  return tuple(listed(ids['eos_token_id']) or [tokenizer.eot])


def make_sampling(flags: SampleFlags) -> Greedy | Sampling:
  penalty = 1.0 if flags.repetition_penalty is None else flags.repetition_penalty
  if flags.temperature == 0:
    return Greedy(penalty)
  temperature = 0.8 if flags.temperature is None else flags.temperature
  top_p = 0.95 if flags.top_p is None and flags.min_p is None else flags.top_p
  return Sampling(temperature, flags.top_k, top_p, flags.min_p, penalty)
