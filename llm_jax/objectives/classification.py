"""Classifying texts: a linear head on what the decoder says of a text's last token.

Shapes: B batch, T time, D model width, C classes.
"""
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.batch import LabelledBatch
from llm_jax.config.data import Data
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.objectives import Classification
from llm_jax.modules.execution import Execution
from llm_jax.modules.layers import Linear
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Loss, Params, sums_by_source
from llm_jax.objectives.protocol import Objective

HEAD = 'classifier'  # the head's place in the tree of parameters, beside the decoder's


def make_head(config: Architecture, classes: int, execution: Execution) -> Linear:
  """Features [..., d_model] to logits [..., classes], without a bias (Radford et al. 2018, GPT-1, equation 3)."""
  return Linear((config.d_model, classes), execution, std=config.init.std)


def init_head(config: Architecture, classes: int, rng: jax.Array) -> Params:
  """Fresh parameters of the head: {'w': float32 [d_model, classes]}."""
  variables: Any = make_head(config, classes, Execution()).init(rng, jnp.zeros((1, config.d_model)))
  return variables['params']


def class_logits(model: Transformer, params: Params, x_BTD: jax.Array, rng: jax.Array | None = None) -> jax.Array:
  """float32 [batch, time, classes] of `features`; with an rng these are dropped out at the model's rate first."""
  if rng is not None and model.config.dropout:
    dropout = nn.Dropout(model.config.dropout, deterministic=False)
    dropped_BTD: Any = dropout.apply({}, x_BTD, rngs={'dropout': rng})
    x_BTD = dropped_BTD
  head = make_head(model.config, params[HEAD]['w'].shape[1], model.execution)
  logits_BTC: Any = head.apply({'params': params[HEAD]}, x_BTD.astype(jnp.float32))
  return logits_BTC


@dataclasses.dataclass(frozen=True)
class ClassificationObjective(Objective):
  """Sum over texts of L3 = L2 + lm_weight L1 (Radford et al. 2018, GPT-1, equations 4 and 5): L2 is -log p(class) at
  the text's last token, L1 the language model's loss on the same text, with what its routers add, a mean over its
  targets as in the published code; weight counts the texts.

  Parameters are the decoder's and, under `HEAD`, the head's. With an rng, dropout is active, on the features too.
  Metrics: accuracy (the class has the largest logit), class_loss (L2), nll (L1 without the routers'), the routers'; of
  each source of a mixture the class loss.
  """
  config: Classification = Classification()
  own_parameters: ClassVar[tuple[str, ...]] = (HEAD,)

  def __call__(self, params: Params, frozen: Frozen, batch: LabelledBatch, rng: jax.Array | None,
               statistics: Any = None) -> Loss:
    language = self.language_model
    features, routings = language.features(params, batch.text, rng)
    head_rng = None if rng is None else jax.random.fold_in(rng, 1)
    logits_BTC = class_logits(self.model, params, features[0], head_rng)

    is_last_BT = batch.labels >= 0
    label_BT = jnp.maximum(batch.labels, 0)
    label_logit_BT = jnp.take_along_axis(logits_BTC, label_BT[..., None], -1)[..., 0]
    is_right_BT = jnp.argmax(logits_BTC, -1) == label_BT

    def sum_of_row(x_BT: jax.Array) -> jax.Array:
      return jnp.where(is_last_BT, x_BT, 0).sum(1)

    class_loss_B = sum_of_row(jax.nn.logsumexp(logits_BTC, -1) - label_logit_BT)
    texts_B = sum_of_row(jnp.ones_like(label_logit_BT))
    lm = language.of_features(params, batch.text, features, routings, statistics)
    metrics = {
      **lm.metrics,
      'class_loss': jax.lax.stop_gradient(class_loss_B.sum()),
      'accuracy': sum_of_row(is_right_BT.astype(jnp.float32)).sum(),
      **sums_by_source(self.sources, batch.sources, class_loss_B, texts_B),
    }
    return Loss(class_loss_B.sum() + self.config.lm_weight * lm.total, texts_B.sum(), metrics, lm.step_sums)

  @property
  def language_model(self) -> LanguageModelObjective:
    return LanguageModelObjective(self.model)

  @property
  def has_statistics(self) -> bool:
    return self.language_model.has_statistics

  def statistics(self, params: Params, frozen: Frozen, batch: LabelledBatch, rng: jax.Array | None) -> Any:
    return self.language_model.statistics(params, frozen, batch.text, rng)

  def after_step(self, params: Params, step_sums: dict[str, jax.Array]) -> Params:
    return self.language_model.after_step(params, step_sums)

  def init_parameters(self, data: Data, rng: jax.Array) -> Params:
    if data.labels is None:
      raise ValueError('a classifier needs data with classes')
    return {HEAD: init_head(self.model.config, len(data.labels), rng)}
