"""What the model writes while it learns."""
from typing import Any

import jax

from llm_jax.config.evaluations import Generations
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import opened
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import Sampling
from llm_jax.evaluation.protocol import Evaluated, Evaluation, Metrics, Result


class GenerationsEvaluation(Evaluation):
  """A continuation of every prompt; the run's seed alone decides the draw, so that steps can be compared."""
  config: Generations

  @property
  def every(self) -> int:
    return self.config.every

  def run(self, model: Evaluated, start: Metrics) -> Result:
    texts = self.continue_prompts(model.params)
    return Result(generations=tuple(zip(self.config.prompts, texts, strict=True)))

  def continue_prompts(self, params: Any) -> list[str]:
    """The continuation of every prompt; in a stage with conversations the answer to it. Every process takes part."""
    setup, tokenizer = self.setup, self.setup.tokenizer
    limit = setup.model.max_length
    room = setup.stage.seq_len if limit is None else min(setup.stage.seq_len, limit)
    prompts, stops = self.encode_prompts()
    prompts = [prompt[:room - 1] for prompt in prompts]
    longest = max(len(prompt) for prompt in prompts)
    new_tokens = max(1, min(self.config.max_new_tokens, room - longest))
    generated = generate(setup.model, params, prompts, new_tokens, Sampling(temperature=0.8, top_p=0.95),
                         jax.random.key(setup.run.seed), stop_tokens=stops, execution=setup.execution)
    texts = []
    for tokens in generated.tokens:
      kept = [token for token in tokens if token not in stops]
      texts.append(tokenizer.decode(kept))
    return texts

  def encode_prompts(self) -> tuple[list[list[int]], tuple[int, ...]]:
    """The ids of every prompt, and the ids that end a text."""
    tokenizer, template = self.setup.tokenizer, self.setup.stage.data.template
    if template is None:
      prompts = [opened(tokenizer, tokenizer.encode(prompt)) for prompt in self.config.prompts]
      return prompts, (tokenizer.eot,)
    prompts = []
    for prompt in self.config.prompts:
      ids = chat_templates.prompt_ids([{'role': 'user', 'content': prompt}], template, tokenizer)
      prompts.append([int(token) for token in ids])
    return prompts, tuple(chat_templates.end_of_turn(template, tokenizer))
