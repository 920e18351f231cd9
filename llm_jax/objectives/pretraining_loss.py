"""Text that is learnt beside sampled answers, so that what was learnt of it stays (Ouyang et al. 2022, InstructGPT,
equation 2)."""
import dataclasses
from typing import Any

import jax

from llm_jax.batch import RolloutBatch
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Loss, Mean, Params


def with_pretraining(loss: Loss, model: Transformer, params: Params, frozen: Frozen, batch: RolloutBatch,
                     rng: jax.Array | None) -> Loss:
  """The loss of a batch's answers, and added to its total that of the text beside them, with dropout where the model
  has it. Divided by the weight of the answers over a whole step, the two are the policy's loss and the weighted mean
  cross-entropy of the text, whatever the number of microbatches.

  Metric: 'pretraining_nll', nats a token of the text.
  """
  if batch.pretraining is None:
    return loss
  text = LanguageModelObjective(model)(params, frozen, batch.pretraining, rng)
  nll: Any = text.metrics['nll']  # a sum over tokens
  metrics = {**loss.metrics, 'pretraining_nll': jax.lax.stop_gradient(Mean(nll, text.weight))}
  return dataclasses.replace(loss, total=loss.total + text.total, metrics=metrics)
