"""What the model writes while it learns."""
import jax

from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers import chat_templates
from llm_jax.decode.generate import generate
from llm_jax.decode.sampling import Sampling


def continue_prompts(config, execution, params, tokenizer, stage: Stage, seed: int) -> list[tuple[str, str]]:
  """(prompt, continuation) for every prompt of the stage; of a stage with conversations, what the user says and the
  answer. Every process takes part; the seed alone decides the draw."""
  if not stage.prompts:
    return []
  room = stage.seq_len if config.max_length is None else min(stage.seq_len, config.max_length)
  template, stops = stage.data.template, (tokenizer.eot,)
  if template is None:
    prompts = [[tokenizer.eot, *tokenizer.encode(prompt)] for prompt in stage.prompts]
  else:
    stops = chat_templates.end_of_turn(template, tokenizer)
    questions = [[{'role': 'user', 'content': prompt}] for prompt in stage.prompts]
    prompts = [chat_templates.prompt_ids(question, template, tokenizer) for question in questions]
  prompts = [[int(token) for token in prompt[:room - 1]] for prompt in prompts]
  new = max(1, min(stage.sample_tokens, room - max(map(len, prompts))))
  generated = generate(config, params, prompts, new, Sampling(temperature=0.8, top_p=0.95), jax.random.key(seed),
                       stop_tokens=tuple(stops), execution=execution)
  texts = [tokenizer.decode([t for t in tokens if t not in stops]) for tokens in generated.tokens]
  return list(zip(stage.prompts, texts, strict=True))
