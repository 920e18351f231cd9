"""What the stages of one run demand of each other and of its model. `Run` calls `check_stages` when it is made.

Every function raises a `ConfigError` whose field is named from the run: `stages[2].init`.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config.errors import require
from llm_jax.config.model.architecture import RoPE
from llm_jax.config.objectives import Distillation
from llm_jax.config.optimizers import state_form
from llm_jax.config.preferences import RewardModel
from llm_jax.config.rewards import RewardModelScore, WithModel
from llm_jax.config.samples import Samples
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Average, Params, Resume

if TYPE_CHECKING:
  from llm_jax.config.run import Run


def check_stages(run: Run) -> None:
  """Checks the stages in their order."""
  for i, stage in enumerate(run.stages):
    path = f'stages[{i}]'
    earlier = run.stages[:i]
    require(stage.name not in [each.name for each in earlier], f'{path}.name', stage.name, 'stage names must differ')
    _check_parents(stage, earlier, path)
    if isinstance(stage.init, Average):
      _check_average(run, stage.init, stage, path)
    if isinstance(stage.init, Resume):
      _check_resume(stage, _named(earlier, stage.init.stage), path)
    _check_adapters(run, stage, path)
    require(stage.adapters is None or run.mesh.pipeline == 1, f'{path}.adapters', type(stage.adapters).__name__,
            f'the stages of mesh.pipeline={run.mesh.pipeline} train no adapters: use another axis, such as fsdp')
    _check_lengths(run, stage, path)
    _check_teacher(stage, earlier, path)
    _check_reward_models(stage, earlier, path)
    _check_samples(stage, earlier, path)


def _named(stages: tuple[Stage, ...], name: str) -> Stage:
  return next(stage for stage in stages if stage.name == name)


def _check_parents(stage: Stage, earlier: tuple[Stage, ...], path: str) -> None:
  """A stage starts from earlier ones."""
  names = [each.name for each in earlier]
  hint = f'name an earlier stage, one of {names}'
  if isinstance(stage.init, Average):
    for k, checkpoint in enumerate(stage.init.named):
      require(checkpoint.stage in names, f'{path}.init.checkpoints[{k}].stage', checkpoint.stage, hint)
  for parent in stage.parents:
    require(parent in names, f'{path}.init', stage.init, hint)


def _check_teacher(stage: Stage, earlier: tuple[Stage, ...], path: str) -> None:
  """A teacher that is a stage of the run comes before its student."""
  objective = stage.objective
  drawn = objective.teacher_ids if isinstance(objective, Distillation) else None
  teacher = objective.distilled if drawn is None else drawn.teacher
  names = [each.name for each in earlier]
  if isinstance(teacher, Params):
    require(teacher.stage in names, f'{path}.objective.teacher', teacher.stage,
            f'name an earlier stage, one of {names}')


def _check_reward_models(stage: Stage, earlier: tuple[Stage, ...], path: str) -> None:
  """A model that scores answers and is a stage of the run has learnt before it scores."""
  names = [each.name for each in earlier]
  trained = [each.name for each in earlier if isinstance(each.objective, RewardModel)]
  sampled = [('data: samples', samples) for samples in stage.samples if isinstance(samples, Samples)]
  for place, rewarded in [('rollout', stage.rollout)] if stage.rollout else sampled:
    for k, reward in enumerate(rewarded.rewards):
      if not isinstance(reward, WithModel) or not isinstance(reward.model, Params):
        continue
      field = f'{path}.{place}.rewards[{k}]'
      if isinstance(reward, RewardModelScore):
        require(reward.model.stage in trained, f'{field}.model', reward.model.stage,
                f'name an earlier stage whose objective is RewardModel, one of {trained}')
      else:
        require(reward.model.stage in names, f'{field}.judge.model', reward.model.stage,
                f'name an earlier stage, one of {names}')


def _check_samples(stage: Stage, earlier: tuple[Stage, ...], path: str) -> None:
  """A stage that answers prompts for another comes before it."""
  names = [each.name for each in earlier]
  for samples in stage.samples:
    require(samples.stage in names, f'{path}.data: samples.stage', samples.stage,
            f'name an earlier stage, one of {names}')


def _check_resume(stage: Stage, parent: Stage, path: str) -> None:
  """The state of `parent` has the same parts as that of `stage`: an optimizer's, a classifier's head, an average."""
  require(state_form(stage.optimizer) == state_form(parent.optimizer), f'{path}.optimizer', stage.optimizer,
          f'init=Resume({parent.name!r}) needs the optimizer of that stage and its moments: use them, or '
          f'init=Params({parent.name!r})')
  require(stage.parameters == parent.parameters, f'{path}.parameters', stage.parameters,
          f'init=Resume({parent.name!r}) goes on with that stage\'s, {parent.parameters}: use it, or '
          f'init=Params({parent.name!r})')
  require(stage.data.labels == parent.data.labels, f'{path}.init', stage.init,
          f'{parent.name} has other classes, or none, and so other parameters: use Params({parent.name!r})')
  require((stage.ema is None) == (parent.ema is None), f'{path}.ema', stage.ema,
          f'init=Resume({parent.name!r}): both stages keep a moving average or neither; set one, or use '
          f'init=Params({parent.name!r})')


def _check_adapters(run: Run, stage: Stage, path: str) -> None:
  """Checkpoints of adapters are read as adapters: to go on from, or one by one to be merged."""
  for name in stage.parents:
    adapters = _named(run.stages, name).adapters
    goes_on = adapters == stage.adapters if adapters is None else adapters.go_on_in(stage.adapters)
    if isinstance(stage.init, Resume):
      require(goes_on, f'{path}.adapters', stage.adapters,
              f'init=Resume({name!r}) needs the adapters of that stage, {adapters}: use them, or init=Params({name!r})')
    if isinstance(stage.init, Average) and adapters is not None:
      require(goes_on, f'{path}.adapters', stage.adapters,
              f'the mean is of the adapters of {name}: use {adapters}, and merge them in a later stage')


# ---------------------------------------------------------------------------------------------- averages
def _check_average(run: Run, init: Average, stage: Stage, path: str) -> None:
  """The checkpoints that are averaged will be saved and kept, and are of one model."""
  parents = [_named(run.stages, name) for name in stage.parents]
  for parent in parents:
    _check_fixed_length(parent, init, path)
  if isinstance(init.checkpoints, str):
    _check_last_are_saved(run, init, parents[0], path)
  _check_named_are_saved(run, init, path)
  models = [run.model_of(parent) for parent in parents]
  alike = all(model == models[0] for model in models)
  require(alike or stage.positions is not None, f'{path}.positions', None,
          f'{", ".join(stage.parents)} have different ones: say which the mean has')


def _check_fixed_length(parent: Stage, init: Average, path: str) -> None:
  """Which checkpoints a stage leaves is known only where it takes all of its steps."""
  for evaluation in parent.evals:
    require(not evaluation.may_end_stage, f'{path}.init', init,
            f'{parent.name} may end before its last step ({evaluation.name}), so its checkpoints are not known '
            f'beforehand: average a stage after it, or use Params({parent.name!r})')


def _check_last_are_saved(run: Run, init: Average, parent: Stage, path: str) -> None:
  every = run.checkpoints.every
  count = init.last or 0
  require(count <= run.checkpoints.keep, 'checkpoints.keep', run.checkpoints.keep,
          f'{path}.init averages {count} checkpoints: keep as many')
  saved = max(1, -(-parent.steps // every)) if every else 1
  require(count <= saved, f'{path}.init', init,
          f'{parent.name} saves {saved} in its {parent.steps} steps: lower last, or save more often '
          f'(checkpoints.every={every})')


def _check_named_are_saved(run: Run, init: Average, path: str) -> None:
  every = run.checkpoints.every
  seen: list[tuple[str, int]] = []
  for k, checkpoint in enumerate(init.named):
    field = f'{path}.init.checkpoints[{k}]'
    steps = _named(run.stages, checkpoint.stage).steps
    step = steps if checkpoint.step is None else checkpoint.step
    on_schedule = every > 0 and step < steps and step % every == 0
    others = f'and the multiples of checkpoints.every={every} before it' if every else (
      'and no other while checkpoints.every=0')
    require(step == steps or on_schedule, f'{field}.step', step,
            f'{checkpoint.stage} saves its last step, {steps}, {others}')
    require((checkpoint.stage, step) not in seen, field, f'{checkpoint.stage}/{step}',
            'is named twice: give it a larger weight')
    seen.append((checkpoint.stage, step))


# ---------------------------------------------------------------------------------------------- sequence lengths
def _check_lengths(run: Run, stage: Stage, path: str) -> None:
  """The model's positions reach as far as the stage's longest sequence."""
  require(stage.positions is None or isinstance(run.model.positions, RoPE), f'{path}.positions', stage.positions,
          f'the model has {type(run.model.positions).__name__}, which nothing can stretch')
  longest = max(phase.seq_len for phase in stage.phases)
  table = run.model.max_length
  require(table is None or longest <= table, f'{path}.seq_len', longest,
          f'the learned positions end at model.positions.max_length={table}: shorten seq_len or lengthen the table')
  reads_one_more = isinstance(stage.objective, RewardModel)
  require(table is None or not reads_one_more or longest < table, f'{path}.seq_len', longest,
          f'a reward model reads the last target too, and the learned positions end at {table}: use {longest - 1}')
  positions = run.model_of(stage).positions
  meant_for = positions.max_length if isinstance(positions, RoPE) else None
  require(meant_for is None or longest <= meant_for, f'{path}.seq_len', longest,
          f'the positions are meant for {meant_for} tokens (max_length): stretch them with '
          f'{path}.positions=RoPE(theta, scaling, max_length={longest}), or shorten seq_len')
  for k, evaluation in enumerate(stage.evals):
    longest = max(evaluation.row_lengths, default=0)
    require(table is None or longest <= table, f'{path}.evals[{k}].seq_lens', longest,
            f'the learned positions end at model.positions.max_length={table}: give shorter ones')
