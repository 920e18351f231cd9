"""What a stage demands of answers that it learns from: its own, sampled as it goes on, or those of an earlier stage."""
from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config.errors import require
from llm_jax.config.objectives import PPO, Distillation, PolicyGradient
from llm_jax.config.rollout import Rollout
from llm_jax.config.rows import PAIRS, PROMPTS, names_with
from llm_jax.config.samples import SampledSource
from llm_jax.config.sources import Source

if TYPE_CHECKING:
  from llm_jax.config.stage import Stage


def check_rollout(stage: Stage) -> None:
  """Whether answers fit into rows, and rollouts are whole groups and whole steps."""
  rollout = stage.rollout
  if rollout is None:
    require(stage.data.rows != PROMPTS, 'rollout', None,
            'data has prompts: say how answers to them are sampled and scored, with Rollout(rewards=(...,))')
    return
  require(stage.data.rows == PROMPTS, 'rollout', rollout,
          f'answers are sampled to prompts, and data has {stage.data.rows.name}: use data of '
          f'{names_with(Source, PROMPTS)}, or rollout=None')
  _check_compared(stage, rollout)
  has_critic = isinstance(stage.objective, PPO) and stage.objective.critic == 'apart'
  require(stage.adapters is None or not has_critic, 'objective.critic', 'apart',
          "it would be trained whole, beside adapters: use critic='shared'")
  require(rollout.max_new_tokens < stage.seq_len, 'rollout.max_new_tokens', rollout.max_new_tokens,
          f'leaves no room for a prompt in seq_len={stage.seq_len}: use less')
  require(stage.quantization is None, 'quantization', stage.quantization,
          'answers are sampled from the weights as they are: leave it out, and train for fewer bits in a stage after')
  require(not stage.ramp, 'ramp', stage.ramp, 'a stage with a rollout has steps of one size: leave it out')
  has_schedule = any(isinstance(part.weight, tuple) for part in stage.data.sources)
  require(not has_schedule, 'data', [part.weight for part in stage.data.sources],
          'prompts are mixed by weights that stay: use numbers')


def check_pretraining_loss(stage: Stage) -> None:
  """Whether text beside answers stands beside answers, in an objective that adds its loss."""
  text = stage.pretraining_loss
  if text is None:
    return
  adds = stage.rollout is not None and isinstance(stage.objective, PolicyGradient | PPO)
  require(adds, 'pretraining_loss', text,
          'it stands beside answers that a policy gradient or PPO learns from: mix the text into data')
  require(text.batch_size % stage.microbatches == 0, 'pretraining_loss.batch_size', text.batch_size,
          f'use a multiple of microbatches={stage.microbatches}')


def check_teacher_ids(stage: Stage) -> None:
  """Whether the rows that a teacher draws ids for are known before the first step."""
  objective = stage.objective
  if isinstance(objective, Distillation) and objective.teacher_ids is not None:
    require(stage.rollout is None, 'objective.teacher', 'TeacherIds',
            'what the student will say is not known beforehand: name the teacher itself')
    require(not stage.ramp, 'ramp', stage.ramp, 'ids are drawn for rows of one length: leave it out')


def _check_compared(stage: Stage, rollout: Rollout) -> None:
  """Whether a prompt has as many answers as are compared, and rewards to compare them by."""
  objective = stage.objective
  require(bool(rollout.rewards) or isinstance(objective, Distillation), 'rollout.rewards', rollout.rewards,
          'nothing says which answers are good: name at least one, such as Exact()')
  of_group = isinstance(objective, PolicyGradient) and objective.advantage != 'batch'
  hint = 'use 2 or more' + (", or advantage='batch'" if of_group else '')
  is_compared = of_group or objective.rows == PAIRS
  require(rollout.answers > 1 or not is_compared, 'rollout.answers', rollout.answers,
          f'one answer has no other of its group to be compared with: {hint}')
  count = stage.batch_size * rollout.minibatches
  require(objective.rows == PAIRS or count % rollout.answers == 0, 'rollout.answers', rollout.answers,
          f'use a divisor of batch_size x rollout.minibatches = {count}')


def check_samples(stage: Stage) -> None:
  """Whether what an earlier stage answers fits into rows."""
  for field, data in (('data', stage.data), ('eval_data', stage.eval_data)):
    for i, part in enumerate(() if data is None else data.sources):
      if isinstance(part.source, SampledSource):
        tokens = part.source.samples.max_new_tokens
        require(tokens < stage.seq_len, f'{field}.sources[{i}].source.samples.max_new_tokens', tokens,
                f'leaves no room for a prompt in seq_len={stage.seq_len}: use less')
