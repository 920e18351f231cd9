"""What a stage is judged by: held-out means, answers in form, and baselines on the same bytes."""
import itertools
import math
from collections.abc import Mapping
from typing import Any

from llm_jax.config.architecture import Architecture
from llm_jax.config.run import Stage
from llm_jax.data.batches import held_out_batches
from llm_jax.data.pipeline import Dataset
from llm_jax.evaluation.answers import check_answers
from llm_jax.evaluation.baselines import trigram_bits_per_byte, xz_bits_per_byte
from llm_jax.evaluation.held_out import evaluate, make_eval_step
from llm_jax.modules.execution import Execution
from llm_jax.objectives.loss import Objective
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.context import Context

BASELINE_TOKENS = 50_000_000  # more training tokens than that and no trigram model is fitted

StageData = tuple[dict[int, Dataset], Dataset | None]  # training data by context, and held-out data


class Scorer:
  """Scores parameters of one stage. Every process calls it and gets the same.

  data: of this stage and of those that it comes from, by name.
  """

  def __init__(self, context: Context, stage: Stage, data: Mapping[str, StageData], objective: Objective,
               model: Architecture, execution: Execution):
    self.context, self.stage, self.data = context, stage, data
    self.held_out = data[stage.name][1]
    self.eval_step = make_eval_step(objective)
    self.model, self.execution = model, execution

  def scores(self, params: Any, reference: Any, everything: bool = False) -> dict[str, float]:
    """The objective's held-out means, for text also bits per byte, for classes also the share of the most common one;
    {} where nothing is held out.

    everything: of all that is held out, else of the stage's `eval_batches`.
    """
    if self.held_out is None:
      return {}
    rows = self.stage.batch_size // self.stage.microbatches  # as many as a training step holds at once
    batches = held_out_batches(self.held_out, rows, batch_sharding(self.context.mesh),
                               None if everything else self.stage.eval_batches * self.stage.microbatches)
    scores = evaluate(self.eval_step, params, reference, batches)
    if self.stage.data.labels is not None:
      scores['most_common_class'] = self.held_out.most_common_class
    elif self.stage.data.template is None:
      tokens_per_byte = self.held_out.num_targets / self.held_out.num_bytes
      scores['bits_per_byte'] = scores['nll'] * tokens_per_byte / math.log(2)
    return scores

  @property
  def asks(self) -> bool:
    """Whether the stage learns to answer, and there are held-out questions."""
    return bool(self.held_out and self.stage.data.template and not self.stage.data.pairs)

  def answers(self, params: Any) -> dict[str, float]:
    """The share of held-out prompts that are answered in form."""
    return check_answers(self.model, params, self.context.tokenizer, self.held_out, self.execution)

  def baselines(self) -> dict[str, float]:
    """Bits per byte of a trigram model fitted on the tokens that were trained on, in this stage and in those before it,
    and of xz -9. Empty where nothing was trained on, the data is not all text, or there is too much of it."""
    stages = (*self.context.run.ancestors(self.stage), self.stage)
    tokens = sum(stage.tokens_after(stage.steps) for stage in stages)
    plain = all(stage.data.template is None and stage.data.labels is None and not stage.ramp for stage in stages)
    if not plain or not self.stage.steps or tokens > BASELINE_TOKENS:
      return {}
    seen = itertools.chain.from_iterable(
      self.data[stage.name][0][stage.context].tokens_seen(stage.samples_after(stage.steps)) for stage in stages)
    held_out = self.held_out
    return {'trigram_bits_per_byte': trigram_bits_per_byte(seen, held_out.token_documents(),
                                                           self.context.tokenizer.vocab_size, held_out.num_bytes),
            'xz_bits_per_byte': xz_bits_per_byte(held_out.byte_documents())}
