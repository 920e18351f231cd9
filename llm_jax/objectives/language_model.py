"""Next-token prediction."""
import dataclasses
from typing import Any

import jax

from llm_jax.batch import LanguageModelBatch
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.cross_entropy import chunked_cross_entropy
from llm_jax.objectives.loss import Loss, Params


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
  """Sum over targets of weight x (-log p(target) + z_loss logsumexp^2); weight counts the targets.

  With an rng, dropout is active. Metrics: nll (nats) and correct (argmax hits).
  """
  model: Transformer
  z_loss: float = 0.0

  def __call__(self, params: Params, frozen: Any, batch: LanguageModelBatch, rng: jax.Array | None) -> Loss:
    rngs = {'dropout': rng} if rng is not None and self.model.config.dropout else {}
    x_BTD = self.model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids,
                             method='features', rngs=rngs)
    total, sums = chunked_cross_entropy(x_BTD, self.model.head_weight(params), batch.targets, batch.weights,
                                        z_loss=self.z_loss, kernels=self.model.execution.kernel_set,
                                        soft_cap=self.model.config.logit_soft_cap)
    return Loss(total, batch.weights.sum(), {'nll': sums['nll'], 'accuracy': sums['correct']})
