"""The parts of a stage that its configuration alone decides."""
import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.config.data import Data
from llm_jax.config.objectives import Classification, LanguageModel
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.classification import HEAD, ClassificationObjective, init_head
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Objective
from llm_jax.objectives.preference import PreferenceObjective
from llm_jax.train.state import TrainState


def stage_seed(run: Run, stage: Stage) -> int:
  """Of data order and dropout: another for each stage, or a second one would read the first one's rows again."""
  return int(hashlib.sha256(f'{run.seed}/{stage.name}'.encode()).hexdigest()[:7], 16)


def make_objective(stage: Stage, model: Transformer, data: Data) -> Objective:
  """The stage's objective over batches of `data`: of training, or of what it is scored on."""
  sources = data.names if len(data.sources) > 1 else ()
  match stage.objective:
    case LanguageModel(z_loss, multi_token_weight):
      return LanguageModelObjective(model, z_loss, multi_token_weight, sources)
    case Classification(lm_weight):
      return ClassificationObjective(model, lm_weight, sources)
    case form:
      return PreferenceObjective(model, form, sources)


def init_params(run: Run, stage: Stage) -> Any:
  """Fresh float32 parameters, a function of the seed alone; of a stage that classifies, a head's too."""
  key, tokens = jax.random.key(run.seed), jnp.zeros((1, 1), jnp.int32)
  params = Transformer(run.model, Execution(unroll=False)).init(key, tokens)['params']
  if stage.data.labels is None:
    return params
  return {**params, HEAD: init_head(run.model, len(stage.data.labels), jax.random.fold_in(key, 1))}


def best_params(state: TrainState) -> Any:
  """The average of the parameters where one is kept, else the parameters."""
  return state.params if state.ema is None else state.ema
