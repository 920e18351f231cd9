"""The parameters that steps read and never change."""
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax import paths
from llm_jax.modules.transformer import Transformer

FLOAT32_HEADS = ('classifier', 'reward', 'value_head')  # of objectives; used in float32, as routers are


@flax.struct.dataclass
class FrozenModel:
  """A model that is read only, which may have another architecture than the one that is trained.

  params: its parameters, and those of its objective, such as a reward model's head.
  """
  params: Any
  model: Transformer = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Frozen:
  """Trees of parameters beside those that are trained, each None where the stage has no use for it.

  They are an argument of the step, sharded as the parameters are, and never donated.

  base: of a stage with adapters, all parameters of the model, stored as `LoRA.base` says.
  reference: what the stage starts from, where the objective compares with it; of a stage with adapters, the adapters.
  reward: the models that score answers, by the name of the stage that trained each.
  teacher: the model that is distilled.
  """
  base: Any = None
  reference: Any = None
  reward: dict[str, FrozenModel] | None = None
  teacher: FrozenModel | None = None


def read_only(params: Any, dtype: jnp.dtype) -> Any:
  """The parameters of a model that computes in `dtype` and is never trained.

  Matrices and embeddings are stored in `dtype`. They are cast to it wherever they are used, so that no result changes.
  Norms, biases, routers, adapters and the heads of objectives are used in float32 and stay so.

  params: arrays, or their shapes with shardings.
  """
  def store(path: str, leaf: Any) -> Any:
    if not is_cast_at_use(path):
      return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return leaf.astype(dtype)
  return paths.map_named(store, params)


def is_cast_at_use(path: str) -> bool:
  """Whether the model casts this parameter to the dtype of its computation before it does anything else with it."""
  is_weight = path.endswith('/w') and not path.endswith('/router/w')
  return is_weight and path.partition('/')[0] not in FLOAT32_HEADS
