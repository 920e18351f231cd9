"""What a stage that learns from its own answers has beside the others: its source, and what a person is told."""
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.config.adapters import LoRA
from llm_jax.config.rows import PAIRS, PROMPTS, TEXT, RowKind
from llm_jax.config.stage import Stage
from llm_jax.data.batch_source import BatchSource
from llm_jax.data.batches import TrainSource
from llm_jax.data.stage_data import StageData
from llm_jax.modules.low_rank import merge
from llm_jax.objectives.adapted import AdaptedObjective
from llm_jax.objectives.frozen import Frozen, read_only
from llm_jax.objectives.ppo import CRITIC, PPOObjective
from llm_jax.objectives.scalar_head import VALUE
from llm_jax.rollout.pair_source import PairSource
from llm_jax.rollout.pretraining_source import PretrainingSource
from llm_jax.rollout.rewarded_source import RewardedSource
from llm_jax.rollout.rewards import Rewards
from llm_jax.rollout.sampling import Sampler
from llm_jax.rollout.source import Policy, RolloutSource
from llm_jax.rollout.text_source import OwnTextSource
from llm_jax.rollout.turns import make_sampler
from llm_jax.sharding.check import row_shards
from llm_jax.sharding.rules import batch_sharding, param_shardings
from llm_jax.train.build import make_trained_objective, stage_seed
from llm_jax.train.hooks import Log
from llm_jax.train.session import Session

# By the rows that a stage's objective learns from.
SOURCES: dict[RowKind, type[RolloutSource]] = {PROMPTS: RewardedSource, PAIRS: PairSource, TEXT: OwnTextSource}


def make_rollout_source(session: Session, stage: Stage, data: StageData) -> RolloutSource:
  """The source of the stage's own answers."""
  assert stage.rollout is not None and data.prompts is not None
  run = session.run
  sampler = Sampler(run.model_of(stage), session.execution, session.tokenizer, data.prompts.stop_tokens,
                    stage.rollout.max_new_tokens, stage.rollout.rows_at_once)
  sampler = make_sampler(sampler, stage.rollout, data.prompts)
  parts = (stage, data.prompts, make_policy(session, stage), sampler, Rewards(stage.rollout),
           batch_sharding(session.mesh), stage_seed(run, stage), row_shards(run.model, run.mesh, jax.device_count()))
  if stage.pretraining_loss is None:
    return SOURCES[stage.objective.rows](*parts)
  assert data.pretraining is not None
  text = TrainSource(data.pretraining, stage.pretraining_loss.batch_size, batch_sharding(session.mesh))
  return PretrainingSource(text, *parts)


def make_policy(session: Session, stage: Stage) -> Policy:
  """The models of a stage's rollouts."""
  model = session.transformer(stage)
  objective = make_trained_objective(stage, model)
  for_decoding = DecodingCopy(stage.adapters, session.execution.dtype, session.mesh)
  inner = objective.objective if isinstance(objective, AdaptedObjective) else objective
  values = jax.jit(inner.values) if isinstance(inner, PPOObjective) else None
  if isinstance(objective, AdaptedObjective):
    reference = lambda frozen: objective.whole_frozen(frozen).reference
    return Policy(model, objective.whole, for_decoding, reference, values)
  return Policy(model, lambda params, frozen: params, for_decoding, lambda frozen: frozen.reference, values)


class DecodingCopy:
  """(params, frozen) -> the parameters that answers are sampled with: adapters merged, matrices in the dtype of the
  computation, and whole on the devices that fsdp splits them over, which would else send them for every token."""

  def __init__(self, adapters: LoRA | None, dtype: str, mesh: jax.sharding.Mesh):
    self.adapters = adapters
    self.dtype = dtype
    self.mesh = mesh
    self._compiled: Any = None

  def __call__(self, params: Any, frozen: Frozen) -> Any:
    if self._compiled is None:
      shapes = jax.eval_shape(self._make, params, frozen)
      shardings = jax.tree.map(_without_fsdp, param_shardings(shapes, self.mesh))
      self._compiled = jax.jit(self._make, out_shardings=shardings)
    return self._compiled(params, frozen)

  def _make(self, params: Any, frozen: Frozen) -> Any:
    merged = params if self.adapters is None else merge(frozen.base, params, self.adapters)
    decoder = {name: tree for name, tree in merged.items() if name not in (VALUE, CRITIC)}
    return read_only(decoder, jnp.dtype(self.dtype))


def _without_fsdp(sharding: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
  axes = [None if axis == 'fsdp' else axis for axis in sharding.spec]
  return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*axes))


class ShowRollouts:
  """Writes down a few answers with their rewards, and warns once of each way in which the policy may have collapsed.
  Of any other source nothing is shown."""

  def __init__(self, source: BatchSource, log: Log):
    self.source = source
    self.log = log
    self.told: set[str] = set()

  def __call__(self, step: int, state: Any, metrics: Any) -> None:
    if not isinstance(self.source, RolloutSource) or not self.source.numbers():
      return
    shown, stage = self.source.shown(), self.log.stage.name
    for prompt, text in shown.answers:
      self.log.writer.generation(stage, step, prompt, text)
    for kind, warning in shown.warnings.items():
      if kind not in self.told:
        self.log.writer.write('event', stage, step, event=f'collapse: {warning}')
        self.log.progress.message(f'{stage}: step {step}: warning: {warning}')
    self.told.update(shown.warnings)
