"""SFT and then DPO of a Hugging Face model on your own data, on one GPU: the same adapters in both stages.

python -m launch.train --config=experiments/finetune_dpo.py:FOLDER --workdir=runs/dpo
python -m launch.convert --checkpoint=runs/dpo --to_hf=FOLDER-aligned          (of adapters with --merge)

FOLDER holds config.json, *.safetensors and tokenizer.json; chats.jsonl with {"messages": [{"role", "content"}, ...]};
and pairs.jsonl with {"prompt", "chosen", "rejected"}, each a text or a list of messages. As in finetune.py, the
device's memory decides whether all parameters, LoRA or QLoRA is trained. The reference of DPO is the model after SFT.
"""
from llm_jax import hf
from llm_jax.adapters.choose import choose_adapters
from llm_jax.config.experiment import (
  DPO,
  AdamW,
  Answers,
  Checkpoints,
  Conversations,
  Cosine,
  HeldOut,
  HuggingFace,
  Params,
  Preferences,
  experiment,
  mix,
  stage,
)


def get_config(folder):
  template = hf.template_of(folder)
  chats = Conversations(f'{folder}/chats.jsonl', template=template, val_fraction=0.05)
  model = hf.read_config(folder)
  adapters = choose_adapters(model)
  times = 1 if adapters is None else 10  # B begins at zero, so that adapters take larger steps
  common = dict(seq_len=min(1_024, model.meant_length or 1_024), batch_size=32, microbatches=4, remat='block',
                optimizer=AdamW(weight_decay=0.0), adapters=adapters)
  return experiment(
    seed=0,
    tokenizer=hf.read_tokenizer(folder),
    model=model,
    checkpoints=Checkpoints(every=100, keep=2),
    stages=(
      stage('sft', mix(chats, packing='best_fit'), **common, steps=500,
            learning_rate=Cosine(peak=2e-5 * times, warmup=20, final=0.1),
            evals=(HeldOut(every=50), Answers()), init=HuggingFace(folder)),
      stage('dpo', Preferences(f'{folder}/pairs.jsonl', template=template, val_fraction=0.05), **common, steps=200,
            learning_rate=Cosine(peak=5e-7 * times, warmup=20, final=0.1), objective=DPO(beta=0.1),
            evals=(HeldOut(every=50),), init=Params('sft')),
    ),
  )
