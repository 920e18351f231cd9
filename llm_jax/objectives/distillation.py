"""Distillation: a student learns what a teacher expects at every token (Hinton et al. 2015; Agarwal et al. 2024, GKD).

Shapes: B batch, T time, L chunk of time, D model width, V vocabulary.
"""
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.batch import LanguageModelBatch
from llm_jax.config.objectives import Distillation
from llm_jax.draw import draw
from llm_jax.modules.low_rank import has_dropout
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.chunks import chunk_length, split
from llm_jax.objectives.cross_entropy import head_logits
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.loss import Loss, Params, sums_by_source
from llm_jax.objectives.protocol import Objective


@dataclasses.dataclass(frozen=True)
class DistillationObjective(Objective):
  """Sum over targets of the loss that `config.Distillation` states; weight counts the targets.

  `frozen.teacher` has the teacher. With an rng, the student's dropout is active, never the teacher's.
  Logits of student and teacher exist for a chunk of positions at a time; the backward pass computes them again.
  The losses of a student's routers are not added.
  Metrics: 'divergence', 'nll' and 'accuracy' of the student on the data, 'teacher_nll'.
  """
  config: Distillation

  def __call__(self, params: Params, frozen: Frozen, batch: LanguageModelBatch, rng: jax.Array | None,
               statistics: None = None) -> Loss:
    if frozen.teacher is None:
      raise ValueError('there is no teacher')
    student = Logits.of(self.model, params, batch, rng)
    teacher = jax.lax.stop_gradient(Logits.of(frozen.teacher.model, frozen.teacher.params, batch, None))
    key = jax.random.key(0) if rng is None else jax.random.fold_in(rng, 1)
    total_B, sums = chunked_distillation(student, teacher, batch, self.config, self.model.execution.kernel_set, key)
    weight_B = batch.weights.sum(1)
    metrics = {**sums, **sums_by_source(self.sources, batch.sources, total_B, weight_B)}
    return Loss(total_B.sum(), weight_B.sum(), jax.lax.stop_gradient(metrics))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logits:
  """The logits of a model before they are computed.

  x: features [batch, time, width].   w: the head's weight [vocab, width].   soft_cap: as the head has it.
  """
  x: jax.Array
  w: jax.Array
  soft_cap: float | None = dataclasses.field(metadata={'static': True})

  @classmethod
  def of(cls, model: Transformer, params: Params, batch: LanguageModelBatch, rng: jax.Array | None) -> 'Logits':
    rngs: Any = {'dropout': rng} if rng is not None and (model.config.dropout or has_dropout(params)) else {}
    x_BTD: Any = model.apply({'params': params}, batch.tokens, batch.positions, batch.segment_ids, method='features',
                             rngs=rngs)
    return cls(x_BTD, model.head_weight(params), model.config.logit_soft_cap)


def chunked_distillation(student: Logits, teacher: Logits, batch: LanguageModelBatch, config: Distillation,
                         kernels: str, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of each row, float32 [batch], differentiable in the student's logits; and sums of metrics.

  key: of the tokens that are drawn from the teacher, where `config.sampled` says how many.
  """
  B, T = batch.targets.shape
  chunk = chunk_length(B, T, 2 * student.w.shape[0], kernels)

  @jax.checkpoint
  def of_chunk(w_VD, inputs):
    x_BLD, teacher_x, targets_BL, weights_BL, number = inputs
    student_BLV = head_logits(x_BLD, w_VD.astype(x_BLD.dtype), student.soft_cap)
    teacher_BLV = head_logits(teacher_x, teacher.w.astype(teacher_x.dtype), teacher.soft_cap)
    if config.sampled is None:
      divergence_BL = generalized_jsd(student_BLV / config.temperature, teacher_BLV / config.temperature,
                                      config.divergence)
    else:
      drawn = draw(jax.nn.softmax(teacher_BLV), jax.random.fold_in(key, number), config.sampled)
      divergence_BL = sampled_cross_entropy(student_BLV, drawn)
    nll_BL = cross_entropy(student_BLV, targets_BL)
    per_token = {
      'loss': divergence_BL + config.nll_weight * nll_BL,
      'divergence': divergence_BL,
      'nll': nll_BL,
      'accuracy': (student_BLV.argmax(-1) == targets_BL).astype(jnp.float32),
      'teacher_nll': cross_entropy(teacher_BLV, targets_BL),
    }
    return {name: (weights_BL * value_BL).sum(1) for name, value_BL in per_token.items()}

  def add(sums, inputs):
    return jax.tree.map(jnp.add, sums, of_chunk(student.w, inputs)), None

  chunks = split(chunk, student.x, teacher.x, batch.targets, batch.weights)
  zeros = {name: jnp.zeros(B) for name in ('loss', 'divergence', 'nll', 'accuracy', 'teacher_nll')}
  sums_B, _ = jax.lax.scan(add, zeros, (*chunks, jnp.arange(len(chunks[0]))))
  total_B = sums_B.pop('loss')
  return total_B, {name: sum_B.sum() for name, sum_B in sums_B.items()}


def generalized_jsd(student: jax.Array, teacher: jax.Array, beta: float) -> jax.Array:
  """beta KL(teacher || M) + (1 - beta) KL(student || M) of logits [..., vocab], float32 [...], with the mixture
  M = beta teacher + (1 - beta) student (Agarwal et al. 2024, equation 3); at beta 0 its limit KL(teacher || student),
  at 1 KL(student || teacher)."""
  log_p = jax.nn.log_softmax(student)
  log_q = jax.nn.log_softmax(teacher)
  if beta == 0:
    return kl(log_q, log_p)
  if beta == 1:
    return kl_to_constant(log_p, log_q)
  # Through the mixture go gradients whose sum is 0 over the vocabulary; left out, their rounding is too.
  log_m = jax.lax.stop_gradient(jnp.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta)))
  return beta * kl(log_q, log_m) + (1 - beta) * kl_to_constant(log_p, log_m)


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """KL(p || q) over the last axis."""
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def kl_to_constant(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """The same, with a gradient for p alone, p (log p - log q - KL) in log p. It is written so, since the terms of the
  derivative that cancel are far larger where p and q hardly differ, as they do in the end."""
  p, difference = jax.lax.stop_gradient((jnp.exp(log_p), log_p - log_q))
  divergence = (p * difference).sum(-1)
  slope = (p * (difference - divergence[..., None]) * log_p).sum(-1)
  return divergence + (slope - jax.lax.stop_gradient(slope))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-log softmax(logits)[target], float32 [...]."""
  chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits, -1) - chosen


def sampled_cross_entropy(student: jax.Array, drawn: jax.Array) -> jax.Array:
  """The mean over ids drawn from the teacher of -log softmax(student)[id], float32 [...]. Its expectation is the
  cross-entropy of teacher and student, with the gradient of KL(teacher || student) (Anshumann et al. 2025, section 3).

  student: logits [..., vocab].   drawn: int32 [..., count].
  """
  chosen = jnp.take_along_axis(student, drawn, -1)
  return jax.nn.logsumexp(student, -1) - chosen.mean(-1)
