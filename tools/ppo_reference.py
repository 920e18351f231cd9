"""Records what TRL's PPO does in one rollout of a tiny model, for the test of ours: tests/rollout/trl_ppo.json.

  pip install --no-deps --target=DIR trl==1.12.0
  PYTHONPATH=DIR:. python -m tools.ppo_reference tests/rollout/trl_ppo.json

1.12.0 is the last version of TRL that has a PPO, and the tests have a later one. All numbers of the models, prompts and
answers are drawn by NumPy, so that the test has the same.
"""
import importlib
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

VOCAB, PROMPT, ANSWER, ROWS = 31, 5, 6, 8
RATE = 0.05
STEPS = 2  # of the rollout: one minibatch, learnt from twice
OPTIONS: dict[str, Any] = dict(kl_coef=0.05, gamma=0.98, lam=0.9, cliprange=0.2, cliprange_value=0.2, vf_coef=0.3,
                               whiten_rewards=True, temperature=0.7)


def make_models() -> dict[str, Any]:
  """Policy, reference, value and reward model of transformers."""
  transformers = module('transformers')
  size: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24, bos_token_id=None, eos_token_id=None, pad_token_id=0)
  causal = lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
  scored = lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**size, num_labels=1))
  models = {'policy': causal(), 'reference': causal(), 'value': scored(), 'reward': scored()}
  for seed, model in enumerate(models.values()):
    fill(model, seed)
  return models


def module(name: str) -> Any:
  """A package that the tests need and the library does not."""
  return importlib.import_module(name)


def fill(model: Any, seed: int) -> None:
  """Draws the parameters of a model of torch."""
  torch = module('torch')
  rng = np.random.default_rng(seed)
  for name, parameter in model.named_parameters():
    spread = 0.1 if parameter.ndim == 1 else 0.3
    drawn = spread * rng.standard_normal(tuple(parameter.shape)) + ('norm' in name)
    parameter.data = torch.tensor(drawn, dtype=torch.float32)


def make_tokens() -> np.ndarray:
  """Prompts and answers, int64 [rows, prompt + answer]; none of the ids pads or ends a text."""
  return np.random.default_rng(7).integers(2, VOCAB, (ROWS, PROMPT + ANSWER))


def shadows(tensors: dict[str, np.ndarray]) -> dict[str, list[float]]:
  """Of each tensor its products with 4 random ones: few numbers that tell it from others."""
  found = {}
  for name, tensor in tensors.items():
    rng = np.random.default_rng(len(name))
    found[name] = [float((rng.standard_normal(tensor.shape) * tensor).sum()) for _ in range(4)]
  return found


def changes(models: dict[str, Any], before: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
  """`shadows` of what has been added to the parameters of policy and value model."""
  found = {}
  for kind in ('policy', 'value'):
    after = {name: parameter.detach().numpy() for name, parameter in models[kind].named_parameters()}
    found[kind] = shadows({name: after[name].astype(np.float64) - before[kind][name] for name in after})
  return found


def record(path: pathlib.Path) -> None:
  torch, transformers = module('torch'), module('transformers')
  ppo = module('trl.experimental.ppo')
  models, tokens = make_models(), make_tokens()
  before = {kind: {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
            for kind, model in models.items()}
  words = {f'w{i}': i for i in range(VOCAB)}
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=module('tokenizers').Tokenizer(module('tokenizers.models').WordLevel(words, unk_token='w2')),
    unk_token='w2', pad_token='w0', eos_token='w1')
  answers = {tuple(row[:PROMPT]): row for row in tokens.tolist()}

  def fixed(model, queries, *rest):
    """The answers that are written down, in the place of sampled ones."""
    whole = torch.tensor([answers[tuple(query)] for query in queries.tolist()])
    with torch.no_grad():
      return whole, model(whole).logits[:, PROMPT - 1:-1] / (OPTIONS['temperature'] + 1e-7)

  ppo.ppo_trainer.batch_generation = fixed
  with tempfile.TemporaryDirectory() as folder:
    args = ppo.PPOConfig(output_dir=folder, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
                         per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, num_mini_batches=1,
                         num_ppo_epochs=STEPS, total_episodes=ROWS, response_length=ANSWER, num_sample_generations=0,
                         local_rollout_forward_batch_size=ROWS, missing_eos_penalty=None, save_strategy='no',
                         learning_rate=RATE, lr_scheduler_type='constant', **OPTIONS)
    parameters = [*models['policy'].parameters(), *models['value'].parameters()]
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    rows = module('datasets').Dataset.from_dict({'input_ids': tokens[:, :PROMPT].tolist()})
    trainer = ppo.PPOTrainer(args, tokenizer, models['policy'], models['reference'], models['reward'], rows,
                             models['value'], optimizers=(optimizer, rate), eval_dataset=rows)
    logged: list[dict[str, float]] = []
    trainer.log = lambda metrics, *rest: logged.append(metrics)
    trainer.train()
  [metrics] = logged
  kept = {name: value for name, value in metrics.items() if '/' in name}
  path.write_text(json.dumps({'metrics': kept, 'changes': changes(models, before)}, indent=1) + '\n')


if __name__ == '__main__':
  record(pathlib.Path(sys.argv[1]))
