"""The test before a stage that documents in one row do not read one another."""
import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from launch.experiment_file import load_run
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Mesh, presets
from llm_jax.config.ramp import Phase
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels import blocked_attention
from llm_jax.sharding.mesh import make_mesh
from llm_jax.train import leak_test
from llm_jax.train.data import open_data
from llm_jax.train.leak_test import Leak, check_no_leaks, find_leaks, small
from llm_jax.train.run import open_session
from llm_jax.train.stage import build_stage, run_stage
from tests.train.runs import tiny

LLAMA = presets.llama(d_model=32, num_layers=4, num_heads=2, num_kv_heads=1, d_ff=64, vocab_size=264, dropout=0.1)
EXECUTION = Execution()
ONE_DEVICE = make_mesh(Mesh(data=1), jax.devices()[:1])


def few_experts():
  """DeepSeek's latent attention and routing with smaller sizes."""
  full = presets.deepseek_v3()
  blocks = []
  for block in (full.prefix[0], full.pattern[0]):
    attention = dataclasses.replace(block.attention, num_heads=4, q_rank=64, kv_rank=32)
    layer = block.feed_forward
    if hasattr(layer, 'num_experts'):
      layer = dataclasses.replace(layer, num_experts=16)
    blocks.append(dataclasses.replace(block, attention=attention, feed_forward=layer))
  return dataclasses.replace(full, num_layers=2, prefix=(blocks[0],), pattern=(blocks[1],))


def leaks(model=LLAMA, execution=EXECUTION, mesh=ONE_DEVICE, rows=4, length=24):
  find_leaks.cache_clear()
  with jax.set_mesh(mesh):
    return find_leaks(small(model, mesh.shape), execution, mesh, rows, length)


def all_the_same(rows_BT, columns_BS):
  return jnp.ones((rows_BT.shape[0], rows_BT.shape[1], columns_BS.shape[1]), bool)


@pytest.fixture(autouse=True)
def _forget():
  yield
  find_leaks.cache_clear()


def test_nothing_moves_bit_by_bit_and_much_would_without_a_mask():
  second, first = leaks()
  assert (second.of, second.logits, second.gradient) == (leak_test.SECOND, 0, 0)
  assert second.joined_logits > 1 and second.joined_gradient > 1
  assert (first.logits, first.gradient, first.joined_logits) == (0, 0, 0)  # nothing reads what comes later
  assert second.is_rounding and first.is_rounding


@pytest.mark.slow
@pytest.mark.parametrize('model, execution, mesh', [
  (few_experts, Execution('bfloat16'), Mesh(data=1)),
  (presets.gpt_oss_20b, Execution('bfloat16', remat='block'), Mesh(data=2)),
  (presets.gemma2_2b, Execution('bfloat16', kernels='xla'), Mesh(data=1, tensor=2)),
  (presets.llama3_8b, Execution(context_attention='ring'), Mesh(data=1, fsdp=2, context=2)),
  (presets.mixtral_8x7b, Execution('bfloat16'), Mesh(data=1, expert=2)),
  (presets.llama3_8b, Execution('bfloat16'), Mesh(data=1, fsdp=2, pipeline=2)),
], ids=lambda each: getattr(each, '__name__', ''))
def test_kinds_of_block_kernels_and_meshes(model, execution, mesh):
  devices = math.prod(mesh.sizes.values())
  mesh = make_mesh(mesh, jax.devices()[:devices])
  for leak in leaks(model(), execution, mesh, rows=4, length=64):
    assert leak.is_rounding, leak
    assert leak.of == leak_test.FIRST or leak.joined_logits > 1


def test_a_mask_that_is_broken_stops_the_stage_before_it_compiles(corpus, tmp_path, monkeypatch, capsys, caplog):
  """And one that is whole does not."""
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  run = dataclasses.replace(load_run(tiny('experiment', corpus)), leak_test=True)
  with open_session(run, tmp_path / 'run') as session:
    stage = session.run.stages[0]
    built = build_stage(session, stage, open_data(session, [stage]))
    shapes = [(built.phases[0], built.sources[0].abstract())]
    check_no_leaks(session, stage, shapes)
    assert 'first: documents in a row do not read one another (tested in' in capsys.readouterr().out
    find_leaks.cache_clear()
    monkeypatch.setattr(blocked_attention, 'same_segment', all_the_same)
    monkeypatch.setattr('llm_jax.train.stage.compile_steps', lambda *_: pytest.fail('it is compiled'))
    with pytest.raises(ConfigError, match=r"attention = 'cpu kernels in float32 on .*': in 8 rows of 32 tokens the "
                                          r'second document of a row reads the first one: its logits move by'):
      run_stage(built)
    monkeypatch.setattr(leak_test, 'small', lambda *_: 1 / 0)
    check_no_leaks(session, stage, shapes)
    assert 'could not be tested (ZeroDivisionError: division by zero)' in caplog.text
    unwanted = dataclasses.replace(session, run=dataclasses.replace(run, leak_test=False))
    check_no_leaks(unwanted, stage, shapes)
    unasked = dataclasses.replace(session, run=dataclasses.replace(run, leak_test=None))
    check_no_leaks(unasked, stage, shapes)  # on a CPU


def test_a_leak_shows_with_each_seed(monkeypatch):
  moves, stays = Leak(2, 1, 1, 1, 1), Leak(2, 0, 0, 1, 1)
  for by_seed, expected in (((moves, moves), moves), ((moves, stays), None), ((stays, moves), None)):
    monkeypatch.setattr(leak_test, 'find_leaks', lambda *arguments, by_seed=by_seed: (by_seed[arguments[-1]],))
    assert leak_test.find_leak(LLAMA, Execution(), ONE_DEVICE, 4, 24) == expected


def test_what_is_no_rounding():
  assert Leak(2, 0, 0, 4, 100).is_rounding and Leak(2, 0.01, 1, 4, 100).is_rounding
  assert not Leak(2, 0.1, 0, 4, 100).is_rounding
  assert not Leak(2, 0, 3, 4, 100).is_rounding
  assert not Leak(2, math.nan, 0, 4, 100).is_rounding and not Leak(2, 0, 0, 4, math.nan).is_rounding
  assert not Leak(1, 1e-3, 0, 0, 0).is_rounding  # the first document is not to read the second one, whatever


def test_each_length_is_tested_with_its_most_rows():
  text = lambda rows, length: leak_test.LanguageModelBatch(*[jax.ShapeDtypeStruct((rows, length), 'int32')] * 5)
  phase = lambda rows, length, microbatches: Phase(0, 0, 0, rows, length, microbatches)
  shapes = [(phase(8, 32, 2), text(8, 32)), (phase(16, 32, 2), text(16, 32)), (phase(4, 64, 1), text(4, 64)),
            (phase(4, 1, 1), text(4, 1))]
  assert leak_test.largest(shapes) == {32: 8, 64: 4}
