"""What a stage is judged by: held-out means, answers in form, needles, and baselines on the same bytes."""
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_jax.config.model.architecture import Architecture
from llm_jax.config.ramp import Phase, spans
from llm_jax.config.stage import Stage
from llm_jax.data.batches import Batch, validation_batches
from llm_jax.data.dataset import Dataset
from llm_jax.evaluation.answers import check_answers
from llm_jax.evaluation.baselines import bits_per_byte, trigram_bits_per_byte, xz_bits_per_byte
from llm_jax.evaluation.held_out import evaluate, make_eval_step
from llm_jax.evaluation.needles import find_needles
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Objective
from llm_jax.sharding.rules import batch_sharding
from llm_jax.train.session import Session

BASELINE_TOKENS = 50_000_000  # more training tokens than that and no trigram model is fitted

StageData = tuple[dict[int, Dataset], Dataset | None]  # training data by context, and held-out data


class Scorer:
  """Scores parameters of one stage. Every process calls it and gets the same.

  data: of this stage and of those that it comes from, by name.   phase: the last of the stage's, for its microbatches.
  """

  def __init__(self, session: Session, stage: Stage, data: Mapping[str, StageData], objective: Objective,
               model: Architecture, execution: Execution, phase: Phase):
    self.session, self.stage, self.data = session, stage, data
    self.held_out, self.phase = data[stage.name][1], phase
    self.eval_step = make_eval_step(objective)
    self.model, self.execution = model, execution
    self.moves: Callable[[], None] = lambda: None  # called before every batch: a long evaluation is no standstill

  def scores(self, params: Any, reference: Any, everything: bool = False) -> dict[str, float]:
    """The objective's held-out means, for text also bits per byte, for classes also the share of the most common one;
    {} where nothing is held out.

    everything: of all that is held out, else of the stage's `eval_batches`.
    """
    if self.held_out is None:
      return {}
    batches = self.batches(self.held_out, None if everything else self.stage.eval_batches * self.phase.microbatches)
    scores = evaluate(self.eval_step, params, reference, batches)
    if self.stage.data.labels is not None:
      scores['most_common_class'] = self.held_out.most_common_class
    elif self.stage.validation_data.template is None:
      scores['bits_per_byte'] = bits_per_byte(scores['nll'] * self.held_out.num_targets, self.held_out.num_bytes)
    for name, part in self.held_out.parts.items():
      if part.store.counts is None and f'loss/{name}' in scores:  # text
        scores[f'bits_per_byte/{name}'] = bits_per_byte(scores[f'loss/{name}'] * part.num_targets, part.store.num_bytes)
    return scores

  def batches(self, held_out: Dataset, limit: int | None = None) -> Iterator[Batch]:
    for batch in validation_batches(held_out, self.phase.rows, batch_sharding(self.session.mesh), limit):
      self.moves()
      yield batch

  @property
  def asks(self) -> bool:
    """Whether the stage's beginning and its end are asked the same questions: answers, or needles."""
    return self.learns_to_answer or self.stage.needles is not None

  @property
  def learns_to_answer(self) -> bool:
    return bool(self.held_out and self.stage.validation_data.template and not self.stage.data.pairs)

  def asked(self, params: Any, before: bool = False) -> dict[str, float | list[float]]:
    """What is asked at the stage's beginning (`before`) and at its end.

    Of a stage that learns to answer the share of held-out prompts answered in form. Of one with a `Needles` for
    every context C `needles_C`, the share of needles found at each depth, and, where it comes from a stage of a shorter
    context, `short_loss`, the held-out loss there.
    """
    return {**(self.answers(params) if self.learns_to_answer else {}),
            **(self.needles(params, before) if self.stage.needles else {})}

  def answers(self, params: Any) -> dict[str, float]:
    return check_answers(self.model, params, self.session.tokenizer, self.held_out, self.execution)

  def needles(self, params: Any, before: bool) -> dict[str, float | list[float]]:
    """Before the stage, the model has the positions of the stage that it comes from."""
    test, run, sharding = self.stage.needles, self.session.run, batch_sharding(self.session.mesh)
    parent = next((stage for stage in run.stages if stage.name in self.stage.parents), None)
    model = Transformer(run.model_of(parent) if before and parent else self.model, self.execution)
    found = {f'needles_{seq_len}': find_needles(
      model, params, self.session.tokenizer, self.held_out.haystack, seq_len, depths=test.depths, rows=test.rows,
      batch_size=self.phase.rows, sharding=sharding) for seq_len in test.seq_lens}
    short = self.data[parent.name][1] if parent else None
    text = parent is not None and not parent.validation_data.pairs and parent.validation_data.labels is None
    if short is None or not text or short.seq_len >= self.phase.seq_len:
      return found
    step = make_eval_step(LanguageModelObjective(model))
    return {**found, 'short_loss': evaluate(step, params, None, self.batches(short))['loss']}

  def target_recall(self, after: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether what was asked is enough for the stage to be done; before: what its beginning was asked."""
    test = self.stage.needles
    found = all(min(shares) >= test.target_recall for name, shares in after.items() if name.startswith('needles_'))
    limit = before.get('short_loss', math.inf) * (1 + test.max_short_loss_increase)
    return found and after.get('short_loss', -math.inf) <= limit

  def baselines(self, step: int) -> dict[str, float]:
    """Bits per byte of a trigram model fitted on the tokens that were trained on, in this stage's first `step` steps
    and in those before it, and of xz -9. Empty where nothing was trained on, the data is not all text, or there is too
    much of it."""
    stages = (*self.session.run.ancestors(self.stage), self.stage)
    saved = [self.session.store(stage.name).steps() for stage in stages[:-1]]
    if not all(saved):  # nobody knows what was trained on
      return {}
    steps = [*(each[0] for each in saved), step]
    tokens = sum(stage.tokens_after(count) for stage, count in zip(stages, steps, strict=True))
    data = [self.stage.validation_data, *(stage.data for stage in stages)]
    plain = all(each.template is None and each.labels is None for each in data)
    if not plain or not self.stage.steps or tokens > BASELINE_TOKENS:
      return {}
    seen = itertools.chain.from_iterable(
      self.data[stage.name][0][phase.seq_len].tokens_seen(samples) for stage, count in zip(stages, steps, strict=True)
      for phase, samples in spans(stage.phases, stage.samples_after(count)))
    held_out = self.held_out
    found = {'trigram_bits_per_byte': trigram_bits_per_byte(
      seen, held_out.token_documents(), self.session.tokenizer.vocab_size, held_out.num_bytes)}
    if not held_out.changed:  # else these would not be the same bytes
      found['xz_bits_per_byte'] = xz_bits_per_byte(held_out.byte_documents())
    return found


def told(name: str, after: float | list[float], before: float | list[float] | None) -> str:
  """What `asked` found at a stage's end, and at its beginning where that is known, in words."""
  def show(value):
    if isinstance(value, list):
      return f'{sum(value) / len(value):.0%} (at the worst depth {min(value):.0%})'
    return f'{value:.4f}' if name == 'short_loss' else f'{value:.0%}'
  what = {'ended': 'answers to held-out prompts that end', 'parses': 'and are in form',
          'short_loss': 'held-out loss at the sequence length before'}.get(name) or (
            f'needles found in {int(name.removeprefix("needles_")):,} tokens')
  return f'{what}: ' + (f'{show(before)} -> ' if before is not None else '') + show(after)
