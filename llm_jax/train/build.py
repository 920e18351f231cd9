"""The parts of a stage that its configuration alone decides."""
import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.config.data import Data
from llm_jax.config.implementation import load
from llm_jax.config.rows import PROMPTS
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.modules.execution import Execution
from llm_jax.modules.low_rank import init_adapters
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.adapted import AdaptedObjective
from llm_jax.objectives.frozen import is_cast_at_use
from llm_jax.objectives.protocol import Objective
from llm_jax.objectives.quantization_aware import QuantizationAwareObjective
from llm_jax.train.state import TrainState


def stage_seed(run: Run, stage: Stage) -> int:
  """Of data order and dropout: another for each stage, or a second one would read the first one's rows again."""
  return int(hashlib.sha256(f'{run.seed}/{stage.name}'.encode()).hexdigest()[:7], 16)


def make_objective(stage: Stage, model: Transformer, data: Data) -> Objective:
  """The stage's objective over batches of `data`: of training, or of what it is scored on."""
  sources = data.names if len(data.sources) > 1 and stage.rollout is None else ()
  if stage.rollout is not None and stage.objective.rows == PROMPTS:
    return load(stage.objective)(model, stage.objective, sources, temperature=stage.rollout.temperature)
  return load(stage.objective)(model, stage.objective, sources)


def make_trained_objective(stage: Stage, model: Transformer) -> Objective:
  """The stage's objective over batches of its data, as a function of what the stage trains."""
  objective = make_objective(stage, model, stage.data)
  if stage.adapters is not None:
    return AdaptedObjective.of(objective, stage.adapters)
  if stage.quantization is not None:
    return QuantizationAwareObjective.of(objective, stage.quantization)
  return objective


def init_params(run: Run, stage: Stage) -> Any:
  """Fresh parameters as the stage stores them, a function of the seed alone: the decoder's, and those of the stage's
  objective."""
  key = jax.random.key(run.seed)
  model = Transformer(run.model, Execution(unroll=False))
  decoder = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  own = make_objective(stage, model, stage.data).init_parameters(stage.data, jax.random.fold_in(key, 1))
  return store_params({**decoder, **own}, stage)


def store_params(params: Any, stage: Stage) -> Any:
  """The parameters as `Stage.parameters` says, from however they are stored."""
  return paths.map_named(lambda path, leaf: store_param(path, leaf, stage.parameters), params)


def store_param(path: str, leaf: Any, kind: str) -> jax.Array:
  """One of them. What a model uses in float32 stays so: norms, biases, routers and the heads of objectives."""
  return leaf.astype(jnp.bfloat16 if kind == 'bfloat16' and is_cast_at_use(path) else jnp.float32)


def init_trained(run: Run, stage: Stage, base: Any) -> Any:
  """What a stage with adapters trains, fresh: the adapters, and the parameters of its objective.

  base: the decoder's parameters, of which only DoRA reads the values.
  """
  assert stage.adapters is not None
  key = jax.random.key(run.seed)
  model = Transformer(run.model, Execution(unroll=False))
  own = make_objective(stage, model, stage.data).init_parameters(stage.data, jax.random.fold_in(key, 1))
  return {**init_adapters(base, stage.adapters, jax.random.fold_in(key, 2)), **own}


def best_params(state: TrainState) -> Any:
  """The average of the parameters where one is kept, else the parameters."""
  return state.params if state.ema is None else state.ema
