"""Models that judge battles: a reward model, and a language model that is asked which answer is better."""
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.adapters.base import SavedModels
from llm_jax.arena.battles import Battle, Orders, Score
from llm_jax.checkpoints.checkpoint import SavedCheckpoint
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config.errors import located, require
from llm_jax.config.judges import PairJudge
from llm_jax.config.preferences import RewardModel
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.prompts import Prompt
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from llm_jax.modules.execution import Execution, dtype_of
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.objectives.scalar_head import REWARD
from llm_jax.rollout.judging import JudgeModel, TwoAnswers, option_ids
from llm_jax.rollout.reward_models import RewardModels
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import CheckpointError
from llm_jax.tracking.run_config import read_config


@dataclasses.dataclass(frozen=True)
class SavedJudge:
  """A stage of a saved run whose newest checkpoint judges."""
  run: Run
  workdir: pathlib.Path
  stage: Stage
  checkpoint: SavedCheckpoint
  tokenizer: Tokenizer

  @property
  def execution(self) -> Execution:
    return Execution(dtype_of(self.run.dtype))

  @functools.cached_property
  def params(self) -> Any:
    """All parameters, a reward model's head with them."""
    decoder = SavedModels(self.run, self.workdir).whole(self.stage, self.checkpoint)
    if not isinstance(self.stage.objective, RewardModel):
      return decoder
    head = self.checkpoint.read((self.checkpoint.best, REWARD))
    return {**decoder, REWARD: jax.device_put(head)}


def open_saved(flag: str, workdir: pathlib.Path, name: str | None, is_reward_model: bool = False) -> SavedJudge:
  """Finds the stage, by default the last one that can judge, and its newest checkpoint.

  Raises:
    ConfigError: the run has no such stage.
    CheckpointError: the stage has no checkpoint, or one that is damaged or of another tokenizer.
  """
  run = read_config(workdir, flag)
  able = [stage for stage in run.stages if isinstance(stage.objective, RewardModel) == is_reward_model]
  names = [stage.name for stage in able]
  kind = 'whose objective is RewardModel' if is_reward_model else 'that is no reward model'
  require(bool(able), flag, str(workdir), f'the run has no stage {kind}')
  require(name in (None, *names), '--judge_stage', name, f'the stages {kind} are {", ".join(names)}')
  saved = [stage for stage in able if name in (None, stage.name)
           and CheckpointStore(workdir / 'checkpoints' / stage.name).steps()]
  require(bool(saved), flag, str(workdir), f'{" and ".join([name] if name else names)} has no checkpoint yet')
  stage = saved[-1]
  checkpoint = CheckpointStore(workdir / 'checkpoints' / stage.name).latest_valid()
  tokenizer = load_tokenizer(workdir / 'tokenizer')
  if checkpoint is None or checkpoint.metadata.tokenizer != tokenizer.fingerprint:
    raise CheckpointError(f'{workdir}: stage {stage.name} has lost its checkpoints, or they are of another tokenizer '
                          'than the folder has: bring them back')
  return SavedJudge(run, workdir, stage, checkpoint, tokenizer)


def reward_scores(judge: SavedJudge, rows_at_once: int) -> Score:
  """What gives the scores of a reward model, which reads prompt and answer as they stood in the rows that taught it."""
  def score(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    model = Transformer(judge.run.model_of(judge.stage), judge.execution)
    frozen = Frozen(reward={'judge': FrozenModel(judge.params, model)})
    models = RewardModels(frozen, (), rows_at_once, (judge.stage.seq_len,), lambda batch: batch)
    return models('judge', [_written(judge, prompt, answer) for prompt, answer in pairs])
  return score


def _written(judge: SavedJudge, prompt: str, answer: str) -> Answer:
  """Prompt and answer as the chat template of the reward model's stage writes them. A template writes no empty answer:
  in its place stands the end alone."""
  template, tokenizer = judge.stage.data.template, judge.tokenizer
  asked = {'role': 'user', 'content': prompt}
  if answer.strip():
    ids, _ = chat_templates.render([asked, {'role': 'assistant', 'content': answer}], template, tokenizer)
    whole = ids.tolist()
  else:
    end = (tokenizer.eot,) if template is None else chat_templates.end_of_turn(template, tokenizer)[:1]
    whole = [*chat_templates.prompt_ids([asked], template, tokenizer).tolist(), *end]
  return Answer(Prompt(prompt, tuple(whole[:1]), {}), tuple(whole[1:]), answer, True, (0.0,) * (len(whole) - 1))


def check_options(saved: SavedJudge, judge: PairJudge) -> None:
  """Refuses options that are no single tokens of the judge's."""
  with located('--judge_model'):
    option_ids(judge, saved.tokenizer)


def judged_orders(saved: SavedJudge, judge: PairJudge, rows_at_once: int) -> Orders:
  """What asks a language model about battles, in both orders."""
  def orders(battles: Sequence[Battle]) -> np.ndarray:
    model = JudgeModel(saved.run.model_of(saved.stage), saved.params, saved.tokenizer, saved.execution, rows_at_once)
    return model.in_both_orders(judge, [
      TwoAnswers(battle.prompt, battle.left_answer, battle.right_answer) for battle in battles])
  return orders
