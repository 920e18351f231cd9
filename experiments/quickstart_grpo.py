"""The quickstart, and behind its SFT a short stage of GRPO that rewards code: in form, with names that are defined, the
arguments used, about as long as the library's own, and with words of the question.

python -m launch.train --config=experiments/quickstart_grpo.py --workdir=runs/quickstart_grpo

Of 128 held-out questions 79 % are answered in form before, sampled at the temperature of the rollouts, and 97 % after
30 steps; greedy answers go from 70 % to 85 %, and 76 % of them are distinct (2026-12-01). Two settings keep the model
from a few answers that suit all questions. UniqueToPrompt gives nothing for code that another question of the rollout
got too; and at a temperature of 0.5 the answers that are most probable are seen so often that it finds them. At a
temperature of 1 sampled answers in form go from 20 % to 87 %, and 22 % of the greedy ones are distinct; without
UniqueToPrompt besides, 93 % and 1 %.
"""
from typing import Any

from experiments import quickstart
from llm_jax.config.experiment import (
  AdamW,
  ArgumentsUsed,
  LengthNear,
  LinearToZero,
  NamesDefined,
  Params,
  PassRate,
  PromptWords,
  PythonBlock,
  Rollout,
  StandardLibraryPrompts,
  UniqueToPrompt,
  dapo,
  experiment,
  stage,
)

REWARDS = (PythonBlock(0.3), NamesDefined(weight=0.1), ArgumentsUsed(0.2), LengthNear(weight=0.2),
           PromptWords(weight=0.4), UniqueToPrompt(1.0))


def get_config():
  config: Any = quickstart.get_config()
  grpo = stage('grpo', StandardLibraryPrompts(val_fraction=0.05), seq_len=192, batch_size=96, steps=30,
               objective=dapo(), rollout=Rollout(REWARDS, answers=8, max_new_tokens=72, temperature=0.5),
               init=Params('sft'), learning_rate=LinearToZero(peak=1.5e-4, warmup=3),
               optimizer=AdamW(b2=0.95, weight_decay=0.0), skip_spikes=None,
               evals=(PassRate(every=10, prompts=128, reward='python_block'),))
  before_dpo = [each for each in config.stages if each.name != 'dpo']
  return experiment(seed=config.seed, tokenizer=config.tokenizer, model=config.model, checkpoints=config.checkpoints,
                    stages=(*before_dpo, grpo))
