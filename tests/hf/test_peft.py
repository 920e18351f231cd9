"""Our adapters against `peft`, in float32: gradients of a step, merging, and files both ways."""
import json

import jax
import numpy as np
import peft
import pytest
import torch

from llm_jax import paths
from llm_jax.config.adapters import LoRA
from llm_jax.config.errors import ConfigError
from llm_jax.hf.peft import CONFIG, WEIGHTS, read_adapter, write_adapter
from llm_jax.modules.execution import Execution
from llm_jax.modules.low_rank import init_adapters, join, merge
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.adapted import AdaptedObjective
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.language_model import LanguageModelObjective
from tests.hf import hf_models

RANK = 3
LINEARS = {
  'llama gqa': ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
  'gemma2': ['q_proj', 'v_proj', 'down_proj'],
  'qwen3': ['k_proj', 'o_proj', 'gate_proj'],
  'deepseek': ['q_a_proj', 'q_b_proj', 'o_proj'],
}


def adapted(case: str, folder, **options):
  """A random model of `transformers`, and `peft`'s model of it whose adapters change something, saved in `folder`."""
  model = hf_models.make(hf_models.CASES[case])
  _, config, params = (model, *hf_models.to_ours(model))
  torch.manual_seed(1)
  lora = peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=LINEARS[case], task_type='CAUSAL_LM', **options)
  wrapped = peft.get_peft_model(model, lora)
  with torch.no_grad():
    for name, tensor in wrapped.named_parameters():
      if 'lora_B' in name:
        tensor.normal_(std=.1)
      if 'magnitude' in name:
        tensor.mul_(1.1)
  wrapped.save_pretrained(folder)
  return wrapped, config, params


@pytest.mark.parametrize('kernels', ('cpu', 'xla'))
@pytest.mark.parametrize('options', ({}, {'use_rslora': True}, {'use_dora': True}), ids=('lora', 'rslora', 'dora'))
def test_a_steps_gradients(options, kernels, tmp_path):
  """Loss and gradient of every adapter, by the names that files of `peft` have."""
  wrapped, config, params = adapted('llama gqa', tmp_path / 'theirs', **options)
  lora, trained = read_adapter(tmp_path / 'theirs', config)
  batch = hf_models.batch()
  model = Transformer(config, Execution(kernels=kernels, unroll=kernels == 'cpu'))
  objective = AdaptedObjective.of(LanguageModelObjective(model), lora)

  def mean(trained):
    loss = objective(trained, Frozen(params), batch, None)
    return loss.total / loss.weight

  got_loss, got = jax.jit(jax.value_and_grad(mean))(trained)
  want_loss = hf_models.torch_loss(wrapped, batch)
  want_loss.backward()
  assert abs(got_loss - want_loss.item()) <= 1e-6 * want_loss.item()
  write_adapter(tmp_path / 'gradients', config, lora, jax.tree.map(np.asarray, got))
  _, gradients = read_tensors(tmp_path / 'gradients')
  want = {name.replace('.default', ''): tensor.grad.numpy() for name, tensor in wrapped.named_parameters()
          if tensor.requires_grad}
  want = {name.replace('vector.weight', 'vector'): tensor for name, tensor in want.items()}
  assert gradients.keys() == want.keys()
  for name, tensor in want.items():
    error = np.linalg.norm(gradients[name] - tensor)
    assert error <= 1e-5 * np.linalg.norm(tensor), name


def read_tensors(folder):
  import safetensors.numpy
  return json.loads((folder / CONFIG).read_text()), safetensors.numpy.load_file(folder / WEIGHTS)


@pytest.mark.parametrize('case', LINEARS)
def test_merged_is_unmerged_is_theirs(case, tmp_path):
  wrapped, config, params = adapted(case, tmp_path)
  lora, trained = read_adapter(tmp_path, config)
  batch = hf_models.batch()
  apply = jax.jit(lambda params: Transformer(config).apply({'params': params}, batch.tokens))
  with torch.no_grad():
    want = wrapped(torch.tensor(np.asarray(batch.tokens)).long()).logits.numpy()
  unmerged = apply(join(params, trained, lora))
  np.testing.assert_allclose(unmerged, want, rtol=0, atol=1e-5)
  np.testing.assert_allclose(apply(merge(params, trained, lora)), unmerged, rtol=0, atol=1e-5)
  assert np.abs(apply(params) - want).max() > 1e-2


@pytest.mark.parametrize('case', LINEARS)
def test_files_there_and_back(case, tmp_path):
  """What is read and written again is the same to the byte, and `peft` loads it."""
  wrapped, config, params = adapted(case, tmp_path / 'theirs')
  lora, trained = read_adapter(tmp_path / 'theirs', config)
  write_adapter(tmp_path / 'ours', config, lora, trained, base='a model')
  assert (tmp_path / 'ours' / WEIGHTS).read_bytes() == (tmp_path / 'theirs' / WEIGHTS).read_bytes()
  again = peft.PeftModel.from_pretrained(hf_models.make(hf_models.CASES[case]), tmp_path / 'ours')
  tokens = torch.tensor(np.asarray(hf_models.batch().tokens)).long()
  with torch.no_grad():
    torch.testing.assert_close(again(tokens).logits, wrapped(tokens).logits, rtol=0, atol=0)


def test_fresh_adapters_change_no_bit():
  model = hf_models.make(hf_models.CASES['llama gqa'])
  config, params = hf_models.to_ours(model)
  lora = LoRA(rank=RANK, base='float32')
  trained = init_adapters(params, lora, jax.random.key(0))
  apply = jax.jit(lambda params: Transformer(config).apply({'params': params}, hf_models.batch().tokens))
  np.testing.assert_array_equal(apply(join(params, trained, lora)), apply(params))
  leaves = paths.flat(trained)
  assert all(np.abs(leaf).max() > 0 for path, leaf in leaves.items() if path.endswith('lora_a'))


@pytest.mark.parametrize('option', ({'lora_bias': True}, {'rank_pattern': {'q_proj': 2}}, {'bias': 'all'},
                                    {'modules_to_save': ['lm_head']}, {'init_lora_weights': 'pissa'}))
def test_options_that_are_not_supported(option, tmp_path):
  _, config, _ = adapted('llama gqa', tmp_path)
  values = json.loads((tmp_path / CONFIG).read_text())
  (tmp_path / CONFIG).write_text(json.dumps(values | option))
  [name] = option
  with pytest.raises(ConfigError, match=name):
    read_adapter(tmp_path, config)


def test_an_adapter_of_another_model(tmp_path):
  adapted('gemma2', tmp_path)
  _, config, _ = adapted('llama gqa', tmp_path / 'other')
  with pytest.raises(ConfigError, match='do not fit'):
    read_adapter(tmp_path, config)


def test_weights_that_share_a_tensor(tmp_path):
  """Keys and values are made from a latent by two matrices of ours, which are one of theirs."""
  _, config, params = adapted('deepseek', tmp_path)
  lora = LoRA(rank=RANK, base='float32', targets='key_up')
  trained = init_adapters(params, lora, jax.random.key(0))
  with pytest.raises(ConfigError, match='key_up'):
    write_adapter(tmp_path / 'ours', config, lora, trained)
