"""The quickstart, and behind its SFT a short stage of GRPO that rewards code: in form, with names that are defined, the
arguments used, about as long as the library's own, and with words of the question.

python -m launch.train --config=experiments/quickstart_grpo.py --workdir=runs/quickstart_grpo

Of the answers that are sampled in the first step 17 % are in form. Of those sampled to held-out questions 62 % are
after 10 steps and 89 % after 20; greedy ones 95 % and 100 %. But the model finds a few answers that suit many
questions: of the greedy ones 26 % are distinct after 10 steps and 4 % after 20 (2026-11-30).
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
