"""A run's model at the terminal: continues a prompt, or keeps up a conversation."""
import argparse
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from launch.errors import refuse
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import require
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.config.type_hints import suggest
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from llm_jax.data.tokenizers.chat_templates import Message, end_of_turn, prompt_ids
from llm_jax.decode.beam import beam_search
from llm_jax.decode.generate import generate, stream
from llm_jax.decode.sampling import Greedy, Sampling
from llm_jax.decode.speculative import stream_speculated
from llm_jax.hf.configs import generation_ids, listed
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.runtime.errors import CheckpointError


class Sampler:
  """A model, its tokenizer, and how to draw from it.

  args: the checked flags of `launch.sample`.   draft_run: the other model that drafts, if any.

  Raises:
    ConfigError: a setting of the sampling is wrong, or the draft has another tokenizer.
    CheckpointError: see `find_checkpoint`.
  """

  def __init__(self, args: argparse.Namespace, run: Run, draft_run: Run | None):
    self.args, self.sampling = args, make_sampling(args)
    self.execution = Execution(dtype_of(args.dtype or run.dtype))
    self.tokenizer, self.draft = load_tokenizer(args.checkpoint / 'tokenizer'), None
    stage, checkpoint = find_checkpoint('checkpoint', args.checkpoint, run, self.tokenizer, args.stage, args.step)
    self.config, self.template = run.model_of(stage), None if args.raw else args.template or stage.data.template
    self.begins, self.stops = text_borders(args.checkpoint / 'tokenizer', self.tokenizer)
    if self.template is not None:
      self.stops = tuple({*end_of_turn(self.template, self.tokenizer), *self.stops})
    require(self.template is not None or args.system is None, '--system', args.system,
            'without a chat template text is continued: put it before the prompt, or name the --template')
    self.opening = [] if args.system is None else [{'role': 'system', 'content': args.system}]
    if draft_run:
      folder = pathlib.Path(args.draft)
      require(load_tokenizer(folder / 'tokenizer').fingerprint == self.tokenizer.fingerprint, '--draft', args.draft,
              'has another tokenizer than --checkpoint: use models trained with one tokenizer')
      stage, drafter = find_checkpoint('draft', folder, draft_run, self.tokenizer)
      self.draft = draft_run.model_of(stage), read_params(drafter)
    self.params = read_params(checkpoint)

  def write(self, prompt: str) -> None:
    """Prints the prompt and its continuations, or a chat model's answers, as they come."""
    if self.template is None:
      tokens, shown = [self.begins, *self.tokenizer.encode(prompt)], prompt
    else:
      tokens, shown = self.ask([*self.opening, {'role': 'user', 'content': prompt}]), ''
    tokens, new = self.fit(tokens)
    for number in range(self.args.num_samples):
      if self.args.num_samples > 1:
        print(f'--- sample {number + 1}')
      print(shown, end='', flush=True)
      if self.args.log_probs:
        self.write_log_probs(tokens, new, number)
      else:
        self.say(self.answer(tokens, new, 0, number), list(tokens))

  def write_log_probs(self, tokens: list[int], new: int, number: int) -> None:
    """Prints a continuation, and then its tokens one by one with their log-probabilities."""
    out = generate(self.config, self.params, [tokens], new, self.sampling, self.rng(0, number),
                   stop_tokens=self.stops, execution=self.execution, log_probs=True)
    assert out.log_probs is not None
    said = list(tokens)
    self.say(iter(out.tokens[0]), said)
    for token, log_prob in zip(said[len(tokens):], out.log_probs[0], strict=False):  # a stop may have cut the text
      print(f'{log_prob:9.4f}  {self.tokenizer.decode([token])!r}')

  def ask(self, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation, up to where the assistant answers."""
    assert self.template is not None
    return prompt_ids(messages, self.template, self.tokenizer).tolist()

  def converse(self, lines: Iterable[str]) -> None:
    """Answers line after line as the assistant of a chat template; all that was said is read again each time."""
    messages = [*self.opening]
    for turn, line in enumerate(lines):
      if line.strip() == '/quit':
        return
      if line.strip() == '/reset':
        messages = [*self.opening]
        continue
      messages.append({'role': 'user', 'content': line})
      answer: list[int] = []
      try:
        self.say(self.answer(*self.fit(self.ask(messages)), turn, 0), answer)
      except KeyboardInterrupt:
        print()
      except ValueError as error:  # of the template or of the request: the conversation goes on without this line
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr, flush=True)
      text = self.tokenizer.decode(answer).strip()  # the templates put their own white space around it
      if text:
        messages.append({'role': 'assistant', 'content': text})
      else:
        messages.pop()

  def chat(self, lines: Iterable[str]) -> None:
    """Goes on line after line; all that was said before is read again each time."""
    if self.template is not None:
      self.converse(lines)
      return
    said = [self.begins]
    for turn, line in enumerate(lines):
      if line.strip() == '/quit':
        return
      if line.strip() == '/reset':
        said = [self.begins]
        continue
      before = len(said)
      try:
        midline = before > 1 and not self.tokenizer.decode(said[-1:]).endswith('\n')
        said += self.tokenizer.encode('\n' * (midline and line != '') + line)
        self.say(self.answer(*self.fit(said), turn, 0), said)
      except KeyboardInterrupt:
        print()
      except ValueError as error:  # of the tokenizer or of the request: the conversation goes on without this line
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr, flush=True)
        del said[before:]

  def answer(self, tokens: list[int], new: int, turn: int, number: int) -> Iterator[int]:
    """The tokens that follow, as they come."""
    request = (self.config, self.params, [tokens], new)
    if self.args.beams:
      beams = beam_search(*request, self.args.beams, stop_tokens=self.stops, execution=self.execution)
      return iter(beams.tokens[0][number])
    rng = self.rng(turn, number)
    if self.args.draft:
      pieces = stream_speculated(*request, self.sampling, rng, draft=self.draft, draft_tokens=self.args.draft_tokens,
                                 stop_tokens=self.stops, execution=self.execution)
    else:
      pieces = stream(*request, self.sampling, rng, stop_tokens=self.stops, execution=self.execution)
    return (token for [row] in pieces for token in row)

  def rng(self, turn: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.args.seed or 0), turn), number)

  def say(self, answer: Iterator[int], said: list[int]) -> None:
    """Prints an answer up to a stop, adding its tokens to what was `said`."""
    def listen() -> Iterator[int]:
      for token in answer:
        if token in self.stops:
          return
        said.append(token)
        yield token

    for text in until(self.args.stop, decode(self.tokenizer, said[-8:], listen())):
      print(text, end='', flush=True)
    print()

  def fit(self, tokens: list[int]) -> tuple[list[int], int]:
    """The tokens to read and the number of new ones, cut to what learned positions can hold."""
    limit, new = self.config.max_length, self.args.max_new_tokens
    if self.draft and self.draft[0].max_length is not None:
      limit = min(limit or self.draft[0].max_length, self.draft[0].max_length)
    if limit is None or len(tokens) + new <= limit:
      return list(tokens), new
    new = min(new, max(limit - len(tokens), limit // 2))
    kept = tokens[-(limit - new):]
    cut = f', of the prompt only its last {len(kept)} tokens are read' if len(kept) < len(tokens) else ''
    print(f'the model has {limit} positions: {new} new tokens at most{cut}', file=sys.stderr)
    return kept, new


def text_borders(folder: pathlib.Path, tokenizer: Tokenizer) -> tuple[int, tuple[int, ...]]:
  """The id that a text begins with, and those that end it: an imported model's own, else the end of text for both.

  folder: the run's tokenizer, with the `generation_config.json` of a model that was imported.
  """
  path = folder / 'generation_config.json'
  ids = generation_ids(path.read_bytes() if path.is_file() else b'{}')
  begins, ends = (listed(ids[key]) or [tokenizer.eot] for key in ('bos_token_id', 'eos_token_id'))
  return begins[0], tuple(ends)


def make_sampling(args: argparse.Namespace) -> Greedy | Sampling:
  penalty = 1.0 if args.repetition_penalty is None else args.repetition_penalty
  if args.temperature == 0:
    return Greedy(penalty)
  top_p = 0.95 if args.top_p is None and args.min_p is None else args.top_p
  return Sampling(0.8 if args.temperature is None else args.temperature, args.top_k, top_p, args.min_p, penalty)


def decode(tokenizer: Tokenizer, before: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
  """Text as soon as its bytes are whole characters; bytes that never become one are shown as U+FFFD.

  before: tokens that the text goes on from. A token is decoded together with those before it, since some tokenizers
    drop the space of a first word.
  """
  ids = list(before)
  start, end = 0, len(ids)  # ids[:end] are printed; ids[start:] are decoded again
  for token in tokens:
    ids.append(token)
    old, new = tokenizer.decode(ids[start:end]), tokenizer.decode(ids[start:])
    whole = old.rstrip('\N{REPLACEMENT CHARACTER}')  # `before` may end inside a character, which is printed yet
    if len(new) > len(whole) and not new.endswith('\N{REPLACEMENT CHARACTER}'):
      yield new[len(whole):]
      start, end = end if whole == old else start, len(ids)
  yield tokenizer.decode(ids[start:])[len(tokenizer.decode(ids[start:end])):]


def until(stops: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
  """Text up to the first of `stops`, which is left out; what may be the beginning of one waits for what follows."""
  text = ''
  for piece in pieces:
    text += piece
    found = [text.index(stop) for stop in stops if stop in text]
    if found:
      yield text[:min(found)]
      return
    waiting = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    yield text[:len(text) - waiting]
    text = text[len(text) - waiting:]
  yield text


def find_checkpoint(flag: str, workdir: pathlib.Path, run: Run, tokenizer: Tokenizer, stage: str | None = None,
                    step: int | None = None) -> tuple[Stage, SavedCheckpoint]:
  """The stage and the checkpoint that were asked for, verified.

  Raises:
    CheckpointError: the checkpoint is damaged, or was trained with another tokenizer.
  """
  folder = workdir / 'checkpoints'
  stages = [stage.name for stage in run.stages]
  with_checkpoints = [name for name in stages if CheckpointStore(folder / name).steps()]
  if stage is not None and stage not in stages:
    refuse(f'--stage={stage}: no such stage; {suggest(stage, stages)}')
  if not with_checkpoints or stage not in (None, *with_checkpoints):
    refuse(f'--{flag}={workdir}: no checkpoint{f" of stage {stage}" if stage else ""} yet: '
           'launch.train writes one every checkpoints.every steps and at the end of a stage')
  store = CheckpointStore(folder / (stage or with_checkpoints[-1]))
  if step is not None and step not in store.steps():
    refuse(f'--step={step}: {store.folder} has {", ".join(map(str, store.steps()))}')
  checkpoint = store.latest_valid() if step is None else store.at(step)
  if checkpoint is None:  # another process has removed it
    raise CheckpointError(f'{store.folder}: its checkpoints are gone')
  if checkpoint.metadata.tokenizer != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path}: trained with tokenizer {str(checkpoint.metadata.tokenizer)[:16]}, the '
                          f'workdir has {tokenizer.fingerprint[:16]}: bring the first one back')
  return next(each for each in run.stages if each.name == store.folder.name), checkpoint


def read_params(checkpoint: SavedCheckpoint) -> Any:
  """The parameters, the average (EMA) where one is kept; tells where they are from."""
  print(f'{checkpoint.path}{", averaged parameters" if checkpoint.averaged else ""}', file=sys.stderr)
  return jax.device_put(checkpoint.read_best())
