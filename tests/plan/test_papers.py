"""A plan's arithmetic gives what papers print, to the digit."""
import math

import pytest

from llm_jax.config import presets
from llm_jax.config.model.count import count_active_parameters, count_parameters, count_parts
from llm_jax.config.model.flops import cache_bytes_per_token
from llm_jax.plan.cost import PETAFLOPS_DAY, Assumptions, cost_of, cost_of_hours, megawatt_hours, tonnes_of_carbon


def cut(x, digits):
  """Some tables are cut, not rounded: Llama 2's 13B has twice the GPU-hours of 7B, 62.4476 t, and says 62.44."""
  return math.floor(x * 10**digits) / 10**digits


def test_gpt3():
  """Brown et al. 2020, table D.1: 3.14e23 FLOPs and 3.64e3 PF-days for 300 billion tokens."""
  flops = 6 * count_active_parameters(presets.gpt3_175b()) * 300e9
  assert f'{flops:.2e}' == '3.14e+23'
  assert f'{flops / PETAFLOPS_DAY:.2e}' == '3.64e+03'


@pytest.mark.parametrize('gpu_hours, energy, carbon', (
  (82_432, 36, 14), (135_168, 59, 23), (530_432, 233, 90), (1_022_362, 449, 173)))
def test_llama(gpu_hours, energy, carbon):
  """Touvron et al. 2023, table 15: A100s of 400 W, PUE 1.1, 0.385 kg CO2e a kWh."""
  cost = cost_of_hours(gpu_hours, None, Assumptions(watts=400))
  assert (cut(cost.energy, 0), round(cost.carbon)) == (energy, carbon)


def test_all_of_llama():
  """Section 6: 2,048 A100s for the time of 2,638 MWh, 1,015 t."""
  energy = megawatt_hours(2_048 * 24 * 122, 400, 1.1)
  assert cut(energy, 0) == 2_638
  assert cut(tonnes_of_carbon(energy, 0.385), 0) == 1_015


LLAMA2 = ((184_320, 400, 31.22), (368_640, 400, 62.44), (1_038_336, 350, 153.90), (1_720_320, 400, 291.42))


def test_llama2():
  """Touvron et al. 2023b, table 2: GPU-hours, watts, tonnes; and 539 t in all."""
  carbon = [cost_of_hours(hours, None, Assumptions(watts=watts)).carbon for hours, watts, _ in LLAMA2]
  assert [cut(tonnes, 2) for tonnes in carbon] == [tonnes for *_, tonnes in LLAMA2]
  assert round(sum(carbon), 2) == 539.00


def test_cache_of_opt_13b():
  """Kwon et al. 2023, vLLM, section 3: 2 x 5,120 x 40 layers x 2 bytes = 800 KB a token."""
  opt = presets.gpt2(5_120, 40, 40)
  assert cache_bytes_per_token(opt) == 800 * 1024


def test_cache_of_latent_attention():
  """DeepSeek-V2, table 1: (kv_rank + rope_dim) numbers a layer and token."""
  model = presets.deepseek_v3()
  assert cache_bytes_per_token(model, itemsize=1) == 61 * (512 + 64)


@pytest.mark.parametrize('preset', ('gpt2_124m', 'llama3_1_8b', 'mixtral_8x7b', 'deepseek_v3', 'gemma2_2b', 'phi4_mini',
                                    'qwen3_30b_a3b', 'olmo2_7b', 'gpt_oss_20b'))
def test_parts_add_up(preset):
  model = getattr(presets, preset)()
  assert sum(count_parts(model).values()) == count_parameters(model)


def test_llama3_405b():
  """Dubey et al. 2024, section 1: 3.8e25 FLOPs for 15.6T tokens."""
  model = presets.llama3_1_405b()
  flops = 6 * count_active_parameters(model) * 15.6e12
  assert f'{flops:.1e}' == '3.8e+25'
  cost = cost_of(flops, 16_384, 989.4e12, Assumptions(mfu=0.5, price=2.0))
  assert cost.seconds == pytest.approx(flops / (16_384 * 989.4e12 / 2))
  assert cost.dollars == pytest.approx(2 * 16_384 * cost.seconds / 3_600)


def test_what_is_not_known_is_none():
  assert cost_of(1e20, 8, None, Assumptions()).seconds is None
  cost = cost_of(1e20, 8, 1e14, Assumptions())
  assert cost.dollars is None and cost.energy is None and cost.carbon is None
