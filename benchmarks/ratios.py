"""What is compared over time: a few ratios of each benchmark's result file."""
from collections.abc import Callable
from typing import Any

Content = dict[str, Any]
Ratios = dict[str, float]


def train_step(content: Content) -> Ratios:
  """llm_jax over transformers: tokens per second (more is better) and peak memory (less is better)."""
  ratios = {}
  for case, result in content['cases'].items():
    ratios[f'{case}: tokens/s'] = result['ratio']['tokens_per_second']
    ratios[f'{case}: peak memory'] = result['ratio']['peak_memory']
  return ratios


def decode(content: Content) -> Ratios:
  """llm_jax over transformers: tokens per second of greedy decoding (more is better)."""
  ratios = {}
  for case, batches in content['cases'].items():
    for batch, result in batches.items():
      ratios[f'{case}, {batch}: tokens/s'] = result['transformers']['ratio']['tokens_per_second']
  return ratios


def cross_entropy_memory(content: Content) -> Ratios:
  """The chunked cross-entropy over one that materialises the logits: memory (less is better)."""
  chunked, materialised = content['chunked'], content['materialised']
  return {
    'temporaries': chunked['temporaries_mib'] / materialised['temporaries_mib'],
    'peak memory': chunked['peak_memory_mib'] / materialised['peak_memory_mib'],
  }


def context_memory(content: Content) -> Ratios:
  """Activations a device of a split sequence over those of one device that holds it whole (less is better)."""
  ratios = {}
  for form in ('gather', 'ring'):
    for devices, result in content[form].items():
      ratios[f'{form}, {devices} devices'] = result['activations_mib'] / content['one_device_activations_mib']
  return ratios


def expert_balance(content: Content) -> Ratios:
  """The fullest expert's load over the mean, with the bias over without it, in the last 20 steps (less is better)."""
  spread = {name: content[name]['last_20_steps']['load_spread'] for name in ('with_bias', 'without_bias')}
  return {'load spread': spread['with_bias'] / spread['without_bias']}


def import_llama(content: Content) -> Ratios:
  """Peak memory while a model is read over what its parameters take (1 is the least possible)."""
  ratios = {}
  for target, run in content['runs'].items():
    ratios[f'{target}: peak memory'] = run['peak_bytes'] / run['parameter_bytes']
  return ratios


def collectives(content: Content) -> Ratios:
  """Bytes that a device sends in a step over those that it must send (1 is the least possible)."""
  return {case: result['ratio'] for case, result in content['cases'].items()}


def accelerator_memory(content: Content) -> Ratios:
  """Peak memory a chip of a training step over that of one with all scores of a layer at once (less is better).

  A length at which the latter does not fit has no ratio.
  """
  ratios = {}
  for length, forms in content['seq_lens'].items():
    for form in ('xla', 'tpu'):
      if form in forms and 'peak_gib' in forms['plain']:
        ratios[f'{length} tokens, {form}'] = forms[form]['peak_gib'] / forms['plain']['peak_gib']
  return ratios


def state_memory(content: Content) -> Ratios:
  """Peak memory of a training step over that with everything in float32 and AdamW (less is better)."""
  peaks = {name: found['peak'] for name, found in content['choices'].items()}
  full = peaks.pop('float32, AdamW, float32 moments')
  chip = content.get('chip', 'cpu')
  return {f'{name} on {chip}': peak / full for name, peak in peaks.items()}


def lean_training(content: Content) -> Ratios:
  """Held-out loss over that of training in float32 (less is better)."""
  means = dict(content['means'])
  full = means.pop('float32')
  return {name: loss / full for name, loss in means.items()}


def score(content: Content) -> Ratios:
  """Seconds of the harness's `hf` backend over ours, and of samples that do not share their prompt over such that do
  (more is better)."""
  ratios = {'samples of a prompt': content['samples']['apart_over_shared']} if 'samples' in content else {}
  for case, kinds in content['cases'].items():
    for kind, result in kinds.items():
      ratios[f'{case}, {kind}'] = result['hf_over_llm_jax']
  return ratios


def rollouts(content: Content) -> Ratios:
  """llm_jax over TRL's GRPOTrainer: answers and whole steps a second (more is better)."""
  ratios = {}
  for case, result in content['cases'].items():
    ratios[f'{case}: answers/s'] = result['ratio']['rollouts_per_second']
    ratios[f'{case}: steps/s'] = result['ratio']['steps_per_second']
  return ratios


def hosts(content: Content) -> Ratios:
  """Seconds of process 0's processor for each host of many over those for each of few: 1 where they grow as the number
  of hosts does (less is better). And its peak memory over 1 GiB, its seconds of committing a checkpoint over 10."""
  few, many = sorted(content['hosts'], key=int)
  ratios = {}
  for part in ('on_first', 'save', 'resume'):
    each = [content['hosts'][count]['parts'][part]['processor'] / int(count) for count in (few, many)]
    ratios[f'{part}: processor a host'] = each[1] / each[0]
  parts = content['hosts'][many]['parts']
  ratios[f'memory of {many} / GiB'] = max(part['peak_mib'] for part in parts.values()) / 1_024
  ratios[f'commit of {many} / 10 s'] = parts['save: manifest']['seconds'] / 10
  return ratios


RATIOS: dict[str, Callable[[Content], Ratios]] = {
  'train_step': train_step,
  'decode': decode,
  'rollouts': rollouts,
  'score': score,
  'cross_entropy_memory': cross_entropy_memory,
  'accelerator_memory': accelerator_memory,
  'collectives': collectives,
  'context_memory': context_memory,
  'expert_balance': expert_balance,
  'import_llama': import_llama,
  'state_memory': state_memory,
  'lean_training': lean_training,
  'hosts': hosts,
}
