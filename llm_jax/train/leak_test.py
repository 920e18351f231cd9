"""The leak test: before a stage compiles its step, two documents in one row must not read one another.

A mask that a kernel, a mesh or a compiler gets wrong shows in no loss: training goes on, a little too well. So a small
decoder with the stage's own attention (heads, windows, positions, rows and lengths, kernel, dtype, mesh) is run on
rows of two documents. The tokens of one change, and the logits of the other must stay; its loss must have no gradient
in the embeddings of the first. Where nothing keeps the documents apart the same numbers are measured once more: what
may move by rounding is a small part of that.

Shapes: B batch, T time, D model width, V vocabulary.
"""
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import paths
from llm_jax.batch import LanguageModelBatch
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import AnyBlock, Architecture, Attention, MixtureOfExperts
from llm_jax.config.model.feed_forward import Dense
from llm_jax.config.ramp import Phase
from llm_jax.config.rows import LABELLED, TEXT
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.runtime.errors import one_line
from llm_jax.sharding.rules import batch_sharding, param_shardings, placed, replicated
from llm_jax.tracking.terminal import say
from llm_jax.train.session import Session

WIDTH = 64  # of the small decoder, about
WORDS = 64  # in its vocabulary, about: the lower half are the first document's, the upper half the second's
LARGEST_SHARE = 0.02  # of what moves where nothing keeps the documents apart; experts round by their other tokens
SEEDS = (0, 1)  # a leak shows in each; where experts are chosen anew because of rounding, it shows in one at most
FIRST, SECOND = 1, 2  # the documents, by segment id


@dataclasses.dataclass(frozen=True)
class Leak:
  """What moved. of: the document that moved.   logits: by how much, at most.   gradient: of its loss, in the embeddings
  of the other's tokens, at most.   joined_logits, joined_gradient: the same where both are one document."""
  of: int
  logits: float
  gradient: float
  joined_logits: float
  joined_gradient: float

  @property
  def is_rounding(self) -> bool:
    """Whether it is none: also where something is not finite, it is one."""
    return (self.logits <= LARGEST_SHARE * self.joined_logits
            and self.gradient <= LARGEST_SHARE * self.joined_gradient)


def check_no_leaks(session: Session, stage: Stage, shapes: Iterable[tuple[Phase, Any]]) -> None:
  """Stops a stage whose documents read one another.

  shapes: the batches that are to come, see `compile.shapes_to_come`.

  Raises:
    ConfigError: on every process, naming the kernel.
  """
  has_several = stage.data.rows in (TEXT, LABELLED) or stage.rollout is not None
  if not has_several or not is_wanted(session.run):
    return
  started = time.perf_counter()
  model, mesh = session.transformer(stage), session.mesh
  for length, rows in largest(shapes).items():
    try:
      leak = find_leak(small(model.config, mesh.shape), model.execution, mesh, rows, length)
    except Exception as error:  # the small decoder is no part of the run, and must not end it
      logging.warning('%s: that documents in a row do not read one another could not be tested (%s: %s)', stage.name,
                      type(error).__name__, one_line(error))
      return
    if leak is not None:
      raise ConfigError('attention', kernel_text(model.execution, mesh), leak_text(leak, rows, length))
  if session.primary:
    say(f'{stage.name}: documents in a row do not read one another (tested in {time.perf_counter() - started:.1f} s)')


def find_leak(model: Architecture, execution: Execution, mesh: jax.sharding.Mesh, rows: int, length: int
              ) -> Leak | None:
  """What moves with each of the seeds."""
  found = None
  for seed in SEEDS:
    leaks = [leak for leak in find_leaks(model, execution, mesh, rows, length, seed) if not leak.is_rounding]
    if not leaks:
      return None
    found = leaks[0]
  return found


def is_wanted(run: Run) -> bool:
  return jax.default_backend() != 'cpu' if run.leak_test is None else run.leak_test


def largest(shapes: Iterable[tuple[Phase, Any]]) -> dict[int, int]:
  """The most rows of a microbatch for each length of row."""
  found: dict[int, int] = {}
  for phase, batch in shapes:
    text = batch if isinstance(batch, LanguageModelBatch) else batch.text
    count, length = text.tokens.shape
    if length > 1:
      found[length] = max(found.get(length, 0), count // phase.microbatches)
  return found


def kernel_text(execution: Execution, mesh: jax.sharding.Mesh) -> str:
  sizes = ' '.join(f'{axis}={size}' for axis, size in mesh.shape.items() if size > 1) or 'one device'
  split = f', {execution.context_attention} over context' if mesh.shape['context'] > 1 else ''
  return f'{execution.kernel_set} kernels in {execution.dtype} on {sizes}{split}'


def leak_text(leak: Leak, rows: int, length: int) -> str:
  read, other = ('second', 'first') if leak.of == SECOND else ('first', 'second')
  return (f'in {rows} rows of {length} tokens the {read} document of a row reads the {other} one: its logits move by '
          f'{leak.logits:.3g} with the other\'s tokens, and the gradient there is {leak.gradient:.3g} '
          f'({leak.joined_logits:.3g} and {leak.joined_gradient:.3g} where they are one document). Use another '
          'context_attention, mesh or version of jax; config.leak_test=False trains nonetheless')


def small(model: Architecture, sizes: Any) -> Architecture:
  """A decoder with the model's kinds of block and their attention as it is, once each, and little else. What lets one
  document of a row matter to another by design is left out: a limit of the tokens that an expert takes.

  sizes: of the mesh axes, which divide its sizes.
  """
  width = multiple(WIDTH, sizes['fsdp'])
  inner = multiple(WIDTH, sizes['tensor'])

  def dense(layer: Dense) -> Dense:
    return dataclasses.replace(layer, d_ff=inner)

  def block(block: AnyBlock) -> AnyBlock:
    attention, layer = block.attention, block.feed_forward
    if isinstance(attention, Attention):
      attention = dataclasses.replace(attention, head_dim=attention.head_size(model.d_model))
    if isinstance(layer, MixtureOfExperts):
      shared = None if layer.shared is None else dense(layer.shared)
      layer = dataclasses.replace(layer, expert=dense(layer.expert), shared=shared, capacity_factor=None)
    else:
      layer = dense(layer)
    return dataclasses.replace(block, attention=attention, feed_forward=layer)

  prefix = tuple(dict.fromkeys(map(block, model.prefix)))
  pattern = tuple(map(block, model.pattern))
  num_layers = len(prefix) + len(pattern) * sizes['pipeline']  # one repeat on each stage of a pipeline
  return dataclasses.replace(
    model, vocab_size=multiple(WORDS, 2 * sizes['tensor']), d_model=width, num_layers=num_layers,
    prefix=prefix, pattern=pattern, multi_token=(), dropout=0.0, embedding_scale=1.0)


def multiple(size: int, of: int) -> int:
  """The first multiple of `of` that is at least `size`."""
  return of * math.ceil(size / of)


@functools.cache  # stages of one model, and the phases of a ramp, are often alike
def find_leaks(model: Architecture, execution: Execution, mesh: jax.sharding.Mesh, rows: int, length: int,
               seed: int = 0) -> tuple[Leak, ...]:
  """Changes each document of rows of two, and measures what moves in the other. The mesh is set."""
  decoder = Transformer(model, execution)
  segments = two_documents(rows, length)
  words = np.random.default_rng(seed).integers(0, model.vocab_size // 2, (2, rows, length))
  tokens, others = words + np.where(segments == SECOND, model.vocab_size // 2, 0)
  run = jax.jit(functools.partial(forward_and_back, decoder), out_shardings=(None, replicated(mesh)))
  compare = jax.jit(largest_difference, out_shardings=replicated(mesh))
  place = functools.partial(placed, sharding=batch_sharding(mesh))
  params = fresh_params(decoder, mesh, seed)
  found = []
  for watched in (SECOND, FIRST):
    changed = np.where(segments == watched, tokens, others)
    is_watched = place((segments == watched).astype(np.float32))
    moved = []
    for ids in (segments, np.ones_like(segments)):
      positions = place(positions_of(ids))
      (before, gradient), (after, _) = (
        run(params, place(text.astype(np.int32)), positions, place(ids), is_watched) for text in (tokens, changed))
      halves = np.split(np.asarray(gradient), 2)
      moved.append((float(compare(before, after, is_watched)), float(halves[0 if watched == SECOND else 1].max())))
    (logits, gradient), (joined_logits, joined_gradient) = moved
    found.append(Leak(watched, logits, gradient, joined_logits, joined_gradient))
  return tuple(found)


def two_documents(rows: int, length: int) -> np.ndarray:
  """int32 [rows, length]: segment ids, with the boundary elsewhere in each row."""
  first = 1 + (np.arange(rows) * 7 + length * 5 // 8) % (length - 1)
  return np.where(np.arange(length) < first[:, None], FIRST, SECOND).astype(np.int32)


def positions_of(segments: np.ndarray) -> np.ndarray:
  """int32 [rows, length]: they begin anew with each document."""
  places = np.arange(segments.shape[1])
  starts = np.argmax(segments == SECOND, axis=1)[:, None]
  return np.where(segments == SECOND, places - starts, places).astype(np.int32)


def fresh_params(decoder: Transformer, mesh: jax.sharding.Mesh, seed: int) -> Any:
  """Random ones: made here, so that nothing is compiled for them. So large that attention decides the logits."""
  shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'])
  random = np.random.default_rng(seed)

  def make(path: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
    mean = 1.0 if path.endswith('/scale') else 0.0
    return placed(random.normal(mean, WIDTH ** -0.5, leaf.shape).astype(np.float32), sharding)

  shardings = dict(paths.leaves(param_shardings(shapes, mesh)))
  return paths.map_named(lambda path, leaf: make(path, leaf, shardings[path]), shapes)


def forward_and_back(decoder: Transformer, params: Any, tokens_BT: jax.Array, positions_BT: jax.Array,
                     segments_BT: jax.Array, watched_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The logits [B, T, V], and for each token [V] the largest gradient in its embedding of a loss over `watched_BT`. The
  loss is of the head's inputs, for a head may be the embedding too."""
  def loss(embedding: Any) -> tuple[jax.Array, jax.Array]:
    x_BTD: Any = decoder.apply({'params': {**params, 'embedding': embedding}}, tokens_BT, positions_BT, segments_BT,
                               method='features')
    weights_D = jnp.cos(jnp.arange(x_BTD.shape[-1], dtype=jnp.float32))
    return (x_BTD.astype(jnp.float32) * weights_D * watched_BT[..., None]).sum(), x_BTD

  gradient, x_BTD = jax.grad(loss, has_aux=True)(params['embedding'])
  logits_BTV: Any = decoder.apply({'params': params}, x_BTD, method='logits')
  return logits_BTV, jnp.abs(gradient['w']).max(axis=1)


def largest_difference(a_BTV: jax.Array, b_BTV: jax.Array, watched_BT: jax.Array) -> jax.Array:
  return (jnp.abs(a_BTV - b_BTV) * watched_BT[..., None]).max()
