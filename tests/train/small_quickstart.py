"""Any experiment at the size of a test, by overrides alone: every stage, objective, source and start as the file has
them."""
import re

from launch.experiment_file import load_run, plain_values
from llm_jax.config.run import Run

STEPS, EVERY = 10, 3  # of a stage, and from one of its checkpoints, evaluations and samples to the next
VOCABULARY = 1_024

# Field -> what it becomes, wherever it stands. What is 0 or None stays so: no steps, no samples.
SMALLER = {
  'vocab_size': lambda _: VOCABULARY, 'sample_bytes': lambda _: 200_000, 'val_fraction': lambda share: min(share, 0.02),
  'steps': lambda steps: min(steps, STEPS), 'warmup': lambda _: 2, 'every': lambda _: EVERY,
  'batches': lambda _: 1, 'max_new_tokens': lambda _: 4, 'batch_size': lambda _: 2, 'microbatches': lambda _: 1,
  'depths': lambda _: 2, 'answers': lambda _: 2, 'buckets': lambda _: 1,
  'rows': lambda _: 2, 'seq_lens': lambda length: max(64, length // 4),
  'original_length': lambda length: length // 4}


def flags(experiment: str) -> list[str]:
  """`--config.FIELD=VALUE` for whatever makes a run of the file long."""
  return [f'--{path}={value}' for path, value in overrides(load_run(experiment)).items()]


def overrides(run: Run) -> dict[str, object]:
  found = {}
  for path, value in plain_values(run, 'config'):
    name = re.search(r'(\w+)(\[\d+\])*$', path)[1]
    if value and name in SMALLER:
      found[path] = SMALLER[name](value)
  for i, stage in enumerate(run.stages):
    if stage.data.template is None:  # a dialogue must still fit
      found[f'config.stages[{i}].seq_len'] = max(32, stage.seq_len // 4)  # as much as a needle needs
    for j, ramp in enumerate(stage.ramp):
      found[f'config.stages[{i}].ramp[{j}].seq_len'] = ramp.seq_len // 4
      found[f'config.stages[{i}].ramp[{j}].tokens'] = (j + 1) * stage.seq_len  # two steps later, or less
  blocks = (*run.model.prefix, *run.model.pattern)
  return {**found, 'config.model.num_layers': len(blocks),
          'config.model.d_model': 8 * max(block.attention.num_heads for block in blocks)}
