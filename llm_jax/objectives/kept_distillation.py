"""Distillation of ids that a teacher has drawn before the first step.

Shapes: B batch, T time, L chunk of time, D model width, V vocabulary.
"""
import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.objectives import Distillation
from llm_jax.draw import draw
from llm_jax.objectives.chunks import chunk_length, join, split
from llm_jax.objectives.cross_entropy import head_logits
from llm_jax.objectives.distillation import Logits, cross_entropy, sampled_cross_entropy
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.objectives.loss import Loss, Params, sums_by_source
from llm_jax.objectives.protocol import Objective

METRICS = ('divergence', 'nll', 'accuracy')


@dataclasses.dataclass(frozen=True)
class KeptDistillationObjective(Objective):
  """Sum over targets of the mean cross-entropy of the student on the row's `teacher_ids`, as `DistillationObjective`
  has it with `sampled`; weight counts the targets. Rows without such ids, of the validation split, have the
  cross-entropy on the data as their loss.

  Metrics: 'divergence' (with ids), 'nll' and 'accuracy' of the student on the data.
  """
  config: Distillation

  def __call__(self, params: Params, frozen: Frozen, batch: LanguageModelBatch, rng: jax.Array | None,
               statistics: None = None) -> Loss:
    student = Logits.of(self.model, params, batch, rng)
    sums_B = self.sums(student, batch)
    weight_B = batch.weights.sum(1)
    total_B = sums_B['divergence'] + self.config.nll_weight * sums_B['nll']
    if batch.teacher_ids is None:
      total_B = sums_B['nll']
      del sums_B['divergence']
    metrics = {name: sum_B.sum() for name, sum_B in sums_B.items()}
    metrics |= sums_by_source(self.sources, batch.sources, total_B, weight_B)
    return Loss(total_B.sum(), weight_B.sum(), jax.lax.stop_gradient(metrics))

  def sums(self, student: Logits, batch: LanguageModelBatch) -> dict[str, jax.Array]:
    """`METRICS` of each row, float32 [batch] each, differentiable in the student's logits."""
    B, T = batch.targets.shape
    # [B, T, ids at every target]
    ids = batch.targets[..., None] if batch.teacher_ids is None else batch.teacher_ids
    chunk = chunk_length(B, T, student.w.shape[0], self.model.execution.kernel_set)

    @jax.checkpoint
    def of_chunk(w_VD, inputs):
      x_BLD, targets_BL, weights_BL, ids_of_chunk = inputs
      logits_BLV = head_logits(x_BLD, w_VD.astype(x_BLD.dtype), student.soft_cap)
      per_token = (sampled_cross_entropy(logits_BLV, ids_of_chunk), cross_entropy(logits_BLV, targets_BL),
                   (logits_BLV.argmax(-1) == targets_BL).astype(jnp.float32))
      return {name: (weights_BL * value_BL).sum(1) for name, value_BL in zip(METRICS, per_token, strict=True)}

    def add(sums, inputs):
      return jax.tree.map(jnp.add, sums, of_chunk(student.w, inputs)), None

    chunks = split(chunk, student.x, batch.targets, batch.weights, ids)
    sums_B, _ = jax.lax.scan(add, {name: jnp.zeros(B) for name in METRICS}, chunks)
    return sums_B


def draw_ids(teacher: FrozenModel, batch: LanguageModelBatch, count: int, key: jax.Array) -> jax.Array:
  """`count` ids of the teacher at every place of a batch, int32 [batch, time, count]."""
  logits = Logits.of(teacher.model, teacher.params, batch, None)
  B, T = batch.targets.shape
  chunk = chunk_length(B, T, logits.w.shape[0], teacher.model.execution.kernel_set)

  def of_chunk(number, x_BLD):
    logits_BLV = head_logits(x_BLD, logits.w.astype(x_BLD.dtype), logits.soft_cap)
    return number + 1, draw(jax.nn.softmax(logits_BLV), jax.random.fold_in(key, number), count)

  [chunks] = split(chunk, logits.x)
  _, ids = jax.lax.scan(of_chunk, 0, chunks)
  return join(ids, T)
