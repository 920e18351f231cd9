"""Llama 3 405B (Dubey et al. 2024), stage by stage: initial pretraining, long context, annealing, averaging, SFT, DPO.

python -m launch.train --config=experiments/llama3_405b.py:FOLDER --workdir=runs/llama3_405b

FOLDER holds tokenizer.json (Llama 3's), web/*.jsonl.gz, long/*.jsonl.gz and best/*.jsonl.gz (text under "text"),
chats.jsonl ({"messages"}) and pairs.jsonl ({"prompt", "chosen", "rejected"}).

Published: the architecture and peak learning rate (table 3), the ramp of batch and context (section 3.4.1), six stages
of context up to 128K over 800B tokens (3.4.2), the linear end and the averaging of its checkpoints (3.4.3), the rates
and weights of alignment (4.1.3, 4.1.4), 16,384 chips, 8 to a tensor and 16 to a context (table 4). Chosen here: the six
contexts, the rate of the long stages, 2,000 steps of annealing (the paper's 40M tokens would be three), batches after
pretraining, and fsdp where the paper has pipelines. Steps until the schedule's end; the paper stops at 15.6T tokens.
"""
from llm_jax.config.experiment import (
  DPO,
  AdamW,
  Answers,
  Average,
  Checkpoints,
  Constant,
  Conversations,
  Cosine,
  HeldOut,
  HuggingFaceFile,
  Jsonl,
  LinearToZero,
  Mesh,
  Params,
  Preferences,
  Ramp,
  Resume,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.model.architecture import Llama3Scaling, RoPE

CONTEXTS = (12_288, 16_384, 32_768, 65_536, 98_304, 131_072)
LONG_TOKENS = 800_000_000_000  # over all of them
STEP_TOKENS = 2**24  # from the end of the ramp on
ADAMW = AdamW(b1=0.9, b2=0.95, weight_decay=0.1)


def get_config(folder):
  return recipe(folder, presets.llama3_1_405b(), peak=8e-5, mesh=Mesh(data=-1, fsdp=128, tensor=8, context=16))


def recipe(folder, model, peak, mesh):
  """The stages for a size of Llama 3 with its peak learning rate."""
  text = lambda kind: Jsonl(f'{folder}/{kind}/*.jsonl.gz', val_fraction=0.0001)
  common = dict(optimizer=ADAMW, clip_norm=1.0, remat='block',
                evals=(HeldOut(every=2_000, batches=8),))
  long = [f'context_{seq_len // 1_024}k' for seq_len in CONTEXTS]

  def longer(name, seq_len, parent):
    batch_size = max(128, STEP_TOKENS // seq_len // 128 * 128)
    return stage(name, mix((text('web'), .5), (text('long'), .5)), seq_len=seq_len, batch_size=batch_size,
                 steps=LONG_TOKENS // len(CONTEXTS) // (batch_size * seq_len),
                 learning_rate=Constant(peak=0.01 * peak), init=Resume(parent), **common,
                 positions=RoPE(500_000.0, Llama3Scaling(factor=8.0, original_length=8_192), max_length=seq_len))

  aligned = dict(seq_len=8_192, batch_size=128, optimizer=AdamW(weight_decay=0.0), remat='block',
                 evals=(HeldOut(every=100), Answers()))
  return experiment(
    seed=0,
    tokenizer=HuggingFaceFile(f'{folder}/tokenizer.json', end_of_text='<|end_of_text|>'),
    model=model,
    mesh=mesh,
    dtype='bfloat16',
    checkpoints=Checkpoints(every=500, keep=5),
    stages=(
      stage('initial', text('web'), seq_len=4_096, batch_size=1_024, steps=1_200_000,
            ramp=(Ramp(252_000_000, batch_size=1_024, seq_len=8_192),
                  Ramp(2_870_000_000_000, batch_size=2_048, seq_len=8_192)),
            learning_rate=Cosine(peak=peak, warmup=8_000, final=0.01), positions=RoPE(500_000.0, max_length=8_192),
            **common),
      *map(longer, long, CONTEXTS, ['initial', *long]),
      stage('anneal', mix((text('web'), .7), (text('best'), .3)), seq_len=131_072, batch_size=128, steps=2_000,
            learning_rate=LinearToZero(peak=0.01 * peak), init=Resume(long[-1]), **common),
      stage('average', text('best'), seq_len=8_192, batch_size=2_048, steps=0, learning_rate=Constant(peak=0.0),
            remat='block', init=Average('anneal', last=4)),
      stage('sft', mix(Conversations(f'{folder}/chats.jsonl', 'llama3'), packing='best_fit'), steps=9_000,
            learning_rate=Constant(peak=1e-5), init=Params('average'), **aligned),
      stage('dpo', Preferences(f'{folder}/pairs.jsonl', 'llama3'), steps=1_000, objective=DPO(beta=0.1, nll_weight=0.2),
            learning_rate=Constant(peak=1e-5), init=Params('sft'), **aligned),
    ),
  )
