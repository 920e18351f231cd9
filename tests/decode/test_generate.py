"""KV-cached generation against the full forward pass and against transformers."""
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import llm_jax
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.model.architecture import GLU, MLP, Attention, Block, LayerNorm, RMSNorm
from llm_jax.config.run import Mesh
from llm_jax.decode.generate import _without_prefix, generate, stream
from llm_jax.decode.program import Program, prefill
from llm_jax.decode.request import bucket, make_choice, make_request
from llm_jax.decode.sampling import GREEDY, Sampling
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings
from tests.hf import hf_models
from tests.modules.decoders import DECODERS, make_params

VOCAB, NEW = 64, 12
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 11, 12, 13]]
GPT2 = presets.gpt2(32, 2, 4, vocab_size=VOCAB, max_length=32)
LLAMA = presets.llama(32, 2, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=VOCAB)
# A prefix block and a pattern of two blocks that differ in everything.
MIXED = dataclasses.replace(LLAMA, num_layers=5, prefix=LLAMA.pattern, pattern=(
    Block(Attention(4, 1, head_dim=16, bias=True), MLP(40, 'gelu', bias=True), LayerNorm()),
    Block(Attention(2), GLU(40), RMSNorm())))
CONFIGS = {'gpt2': GPT2, 'mixed': MIXED}


def full_log_probs(config, params, rows):
  """Log-probabilities after every position, by one uncached forward pass over padded rows."""
  padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, tokens in zip(padded, rows, strict=True):
    row[:len(tokens)] = tokens
  return np.array(jax.nn.log_softmax(jax.jit(Transformer(config).apply)({'params': params}, padded)))


def check_against_full_forward(config, **options):
  """Greedy tokens are those of the full forward pass, log-probabilities to 1e-5."""
  params = make_params(config)
  out = generate(config, params, PROMPTS, NEW, log_probs=True, **options)
  expected = full_log_probs(config, params, [p + t for p, t in zip(PROMPTS, out.tokens, strict=True)])
  assert out.lengths == [NEW] * 3
  for row, (prompt, tokens, log_probs) in enumerate(zip(PROMPTS, out.tokens, out.log_probs, strict=True)):
    expected_row = expected[row, len(prompt) - 1:len(prompt) - 1 + NEW]
    assert tokens == expected_row.argmax(-1).tolist()
    np.testing.assert_allclose(log_probs, expected_row.max(-1), atol=1e-5)


SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster
EXECUTIONS = {'unrolled': Execution(unroll=True), 'scanned': SCANNED}


@pytest.mark.parametrize('name, execution', [
  ('gpt2', 'unrolled'), ('mixed', 'scanned'), pytest.param('gpt2', 'scanned', marks=pytest.mark.slow),
  pytest.param('mixed', 'unrolled', marks=pytest.mark.slow)])
def test_cached_equals_full_forward(name, execution):
  check_against_full_forward(CONFIGS[name], execution=EXECUTIONS[execution])


@pytest.mark.parametrize('name', [pytest.param('rolling', marks=pytest.mark.slow), 'local-global', 'everything'])
def test_every_cache_equals_full_forward(name):
  """Six windows long; read in pieces, of which the first hold nothing but padding."""
  check_against_full_forward(DECODERS[name], prefill_chunk=5)


def test_weights_outside_of_the_pattern_are_not_copied():
  params = jax.tree.map(jnp.asarray, make_params(MIXED))
  unrolled = make_request(MIXED, params, PROMPTS, 1, Execution(unroll=True)).params
  assert unrolled['embedding']['w'] is params['embedding']['w'] and unrolled['head']['w'] is params['head']['w']


def test_ragged_prompts_equal_the_same_prompts_alone():
  config, params = DECODERS['rolling'], make_params(DECODERS['rolling'])
  together = generate(config, params, PROMPTS, NEW, log_probs=True, execution=SCANNED)
  for row, prompt in enumerate(PROMPTS):
    alone = generate(config, params, [prompt], NEW, log_probs=True, execution=SCANNED)
    assert alone.tokens == [together.tokens[row]]
    np.testing.assert_allclose(alone.log_probs, [together.log_probs[row]], atol=1e-5)


def test_pieces_of_a_prompt_bound_its_memory():
  params = make_params(LLAMA)

  def beside_the_cache(chunk):
    program = Program(LLAMA, SCANNED, GREEDY, (), prefill_chunk=chunk)
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.int32)
    return prefill.lower(program, params, jax.random.key(0), shape(1, 1_024), shape(1), 16).compile(
        ).memory_analysis().temp_size_in_bytes

  assert beside_the_cache(64) < beside_the_cache(1_024) / 3


def test_bfloat16_follows_the_full_forward():
  execution = Execution(dtype='bfloat16', unroll=False, kernels='xla')
  out = generate(LLAMA, make_params(LLAMA, 0.05), PROMPTS, NEW, execution=execution, log_probs=True)
  expected = full_log_probs(LLAMA, make_params(LLAMA, 0.05), [p + t for p, t in zip(PROMPTS, out.tokens, strict=True)])
  for row, (prompt, tokens, log_probs) in enumerate(zip(PROMPTS, out.tokens, out.log_probs, strict=True)):
    expected_row = expected[row, np.arange(len(prompt) - 1, len(prompt) - 1 + NEW), tokens]
    np.testing.assert_allclose(log_probs, expected_row, atol=0.05)


PEERS = {
  'gpt2': hf_models.gpt2(),
  'openai': hf_models.openai(),
  'gpt_neox': hf_models.gpt_neox(),
  'llama': hf_models.llama(),
  'mistral': hf_models.mistral(),
  'mixtral': hf_models.mixtral(sliding_window=7),
  'gemma': hf_models.gemma(num_key_value_heads=1),
  'gemma2': hf_models.gemma2(),
  'gemma3': hf_models.gemma3(sliding_window=7),
  'deepseek': hf_models.deepseek(),
  'qwen2': hf_models.qwen2(),
  'qwen3': hf_models.qwen3(),
  'qwen3_moe': hf_models.qwen3_moe(mlp_only_layers=[0]),
  'olmo2': hf_models.olmo2(),
  'olmo3': hf_models.olmo3(sliding_window=7),
  'smollm3': hf_models.smollm3(),
  'phi3': hf_models.phi3(partial_rotary_factor=0.5),
  'gpt_oss': hf_models.gpt_oss(sliding_window=7),
}
UNLIKE = ('gpt2', 'mistral', 'gemma2', 'deepseek', 'gpt_oss')  # in positions and caches; the others are slow


@pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name in UNLIKE else [pytest.mark.slow])
                                  for name in PEERS])
def test_greedy_tokens_equal_transformers(name):
  """Past four windows of 7, from prompts below, at and beyond one."""
  theirs, new = hf_models.make(PEERS[name]), 30
  prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]
  ours = generate(*hf_models.to_ours(theirs), prompts, new, prefill_chunk=12)
  for prompt, tokens in zip(prompts, ours.tokens, strict=True):
    given = torch.tensor([prompt])
    expected = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new,
                               do_sample=False, pad_token_id=0)
    assert tokens == expected[0, len(prompt):].tolist()


def test_stream_equals_generate():
  params, sampling = make_params(GPT2), Sampling(0.9, top_k=20, top_p=0.95)
  whole = generate(GPT2, params, PROMPTS, NEW, sampling, jax.random.key(3))
  rows = [[], [], []]
  for new in stream(GPT2, params, PROMPTS, NEW, sampling, jax.random.key(3), chunk=5):
    for row, tokens in zip(rows, new, strict=True):
      row.extend(tokens)
  assert rows == whole.tokens


def test_seed_alone_decides_the_draw():
  params, sampling = make_params(GPT2, 0.05), Sampling(1.0)
  draw = lambda seed, prompts: generate(GPT2, params, prompts, NEW, sampling, jax.random.key(seed)).tokens
  assert draw(0, PROMPTS) == draw(0, PROMPTS) != draw(1, PROMPTS)
  assert draw(0, PROMPTS)[0] == draw(0, [PROMPTS[0], PROMPTS[2], PROMPTS[1]])[0]  # other rows do not matter
  alike = draw(0, [PROMPTS[0]] * 3)
  assert len({tuple(row) for row in alike}) == 3  # equal prompts get different draws


def test_stop_tokens_end_a_row():
  params, sampling, key = make_params(LLAMA, 0.05), Sampling(1.0), jax.random.key(0)
  free = generate(LLAMA, params, PROMPTS, NEW, sampling, key, execution=SCANNED).tokens
  stops = (free[0][4], free[2][0])
  stopped = generate(LLAMA, params, PROMPTS, NEW, sampling, key, stop_tokens=stops, execution=SCANNED)
  for row, tokens in zip(free, stopped.tokens, strict=True):
    end = next((i + 1 for i, token in enumerate(row) if token in stops), NEW)
    assert tokens == row[:end]
  assert stopped.lengths[2] == 1
  streamed = list(stream(LLAMA, params, PROMPTS, NEW, sampling, key, stop_tokens=stops, chunk=2, execution=SCANNED))
  assert [sum((new[row] for new in streamed), []) for row in range(3)] == stopped.tokens


@pytest.mark.parametrize('axes', [dict(data=1, tensor=2, fsdp=4), pytest.param(dict(data=8), marks=pytest.mark.slow)],
                         ids=['fsdp-tensor', 'data'])
def test_a_mesh_changes_nothing(axes):
  params = make_params(LLAMA)
  expected = generate(LLAMA, params, PROMPTS, NEW, log_probs=True, execution=SCANNED)
  mesh = make_mesh(Mesh(**axes))
  placed = jax.device_put(params, param_shardings(params, mesh))
  out = generate(LLAMA, placed, PROMPTS, NEW, log_probs=True, execution=SCANNED)
  assert out.tokens == expected.tokens
  np.testing.assert_allclose(out.log_probs, expected.log_probs, atol=1e-5)


def test_new_lengths_reuse_the_program():
  params = make_params(GPT2)
  generate(GPT2, params, [[1, 2, 3]], 5)
  before = prefill._cache_size()
  for length, new in ((1, 1), (7, 9), (16, 16)):
    assert generate(GPT2, params, [[1] * length], new).lengths == [new]
  assert prefill._cache_size() == before


def test_buckets():
  for length in range(1, 5_000):
    assert length <= bucket(length) < max(length + 16, 1.25 * length + 1)
  assert len({bucket(length) for length in range(1, 4_097)}) == 28


@pytest.mark.parametrize('prompts,new,field', [
    ([], 1, 'prompts'), ([[1], []], 1, 'prompts[1]'), ([[VOCAB]], 1, 'prompts[0]'), ([[-1]], 1, 'prompts[0]'),
    ([[1]], 0, 'max_new_tokens'), ([[1] * 30], 3, 'prompts[0]')])
def test_bad_requests_are_named(prompts, new, field):
  with pytest.raises(ConfigError, match=re.escape(field)):
    generate(GPT2, {'nothing': np.zeros(1)}, prompts, new)


@pytest.mark.parametrize('prompts', [3, [1, 2], [['a']], 'abc', [[1.5]], [[True]], [[[1], [2]]], [[1, [2]]],
                                     np.ones((1, 2))])
def test_what_is_no_list_of_tokens_is_refused(prompts):
  with pytest.raises(ConfigError, match='prompts.* give a list of lists of token ids'):
    generate(GPT2, {'nothing': np.zeros(1)}, prompts, 1)


def test_arrays_are_prompts():
  for prompts in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.uint16), jnp.array([[1, 2], [3, 4]]),
                  [np.array([1, 2]), jnp.array([3, 4])], [(1, np.int32(2)), range(3, 5)]):
    prompts_BP = make_request(GPT2, make_params(GPT2), prompts, 1, Execution(unroll=False)).prompts_BP
    assert prompts_BP.dtype == np.int32 and prompts_BP[:, -2:].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize('other, path', [
  (dict(num_layers=3), 'blocks/'), (dict(num_layers=1), 'blocks/'), (dict(tied_head=True), 'head/w'),
  (dict(vocab_size=32), 'embedding/w'), (dict(d_ff=32), 'blocks/block_0/feed_forward/')])
def test_the_parameters_of_another_model_are_refused(other, path):
  """More layers, fewer, a head that is not read: all of these would run."""
  small = dict(d_model=16, num_layers=2, num_heads=2, d_ff=48, vocab_size=VOCAB)
  params = make_params(presets.llama(**small))
  for call in (lambda config: generate(config, params, [[1]], 1),
               lambda config: llm_jax.beam_search(config, params, [[1]], 1, 2),
               lambda config: llm_jax.speculate(config, params, [[1]], 1, draft=(config, params))):
    with pytest.raises(ConfigError, match=f'params/{path}.*the parameters of one model'):
      call(presets.llama(**small | other))


def test_what_a_decoder_does_not_read_may_stand_beside_it():
  params = make_params(LLAMA)
  assert generate(LLAMA, {**params, 'classifier': {'w': np.ones((32, 2))}, 'multi_token_0': {'w': np.ones(1)}},
                  PROMPTS, 2) == generate(LLAMA, params, PROMPTS, 2)
  for wrong, hint in (({'params': params}, 'give what stands below it'), (None, 'nested dict of arrays'),
                      ({}, 'missing'), (jax.tree.map(lambda leaf: leaf.astype(int), params), 'floating-point')):
    with pytest.raises(ConfigError, match=hint):
      generate(LLAMA, wrong, PROMPTS, 2)


@pytest.mark.parametrize('arguments, line', [
  (dict(max_new_tokens=4.0), 'max_new_tokens = 4.0: use a whole number'),
  (dict(max_new_tokens='4'), "max_new_tokens = '4': use a whole number"),
  (dict(sampling=0.8), 'sampling = 0.8: give Greedy'), (dict(sampling=Sampling), 'sampling = .*: give Greedy'),
  (dict(rng=0), 'rng = 0: give one random key'),
  (dict(rng=jax.random.split(jax.random.key(0))), 'rng = .*: give one random key'),
  (dict(stop_tokens=3), 'stop_tokens = 3: give a list of token ids'),
  (dict(stop_tokens=((3, 4),)), 'stop_tokens = .*: give a list of token ids'),
  (dict(execution='float32'), "execution = 'float32': give an Execution"),
  (dict(config='llama'), "config = 'str': give an Architecture"), (dict(config=Transformer(GPT2)), 'config = .*Arch')])
def test_arguments_of_the_wrong_kind_are_named(arguments, line):
  with pytest.raises(ConfigError, match=line) as caught:
    generate(**dict(config=GPT2, params={'nothing': np.zeros(1)}, prompts=[[1]], max_new_tokens=1) | arguments)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('settings', [
  dict(temperature='0.8'), dict(temperature=None), dict(top_k=5.0), dict(top_p='1')])
def test_sampling_takes_numbers(settings):
  with pytest.raises(ConfigError, match=f'{next(iter(settings))} = .*: use a (whole )?number'):
    Sampling(**settings)


@pytest.mark.parametrize('unroll', [False, True])
def test_parameters_of_numpy_go_to_the_device_once_a_request(unroll):
  params = jax.tree.map(np.asarray, make_params(MIXED))
  request = make_request(MIXED, params, PROMPTS, 1, Execution(unroll=unroll))
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(request.params))


@pytest.mark.parametrize('stops', [{7}, frozenset([7]), {7: 'end'}.keys(), iter([7]), np.array([7]), [np.int32(7)]])
def test_stop_tokens_may_be_a_set(stops):
  assert make_choice(GREEDY, None, stops)[1] == (7,)


def test_numbers_of_numpy_serve():
  params, key = make_params(GPT2), jax.random.key(1)
  expected = generate(GPT2, params, PROMPTS, 3, Sampling(0.5, top_k=4), key, stop_tokens=(2,))
  sampling = Sampling(np.float32(0.5), top_k=np.int32(4))
  assert expected == generate(GPT2, params, iter(PROMPTS), np.int64(3), sampling, key, stop_tokens=jnp.array([2]))


def test_a_piece_of_nothing_is_refused():
  with pytest.raises(ConfigError, match='prefill_chunk'):
    generate(GPT2, {'nothing': np.zeros(1)}, [[1]], 1, prefill_chunk=0)


@pytest.mark.parametrize('name', ['rolling', *(pytest.param(name, marks=pytest.mark.slow)
                                             for name in ('local-global', 'two lengths'))])
def test_samples_of_a_prompt_are_what_equal_prompts_get(name):
  config, params, sampling = DECODERS[name], make_params(DECODERS[name]), Sampling(1.2, top_k=30)
  options = dict(log_probs=True, stop_tokens=(2,), execution=SCANNED)
  shared = generate(config, params, PROMPTS, NEW, sampling, jax.random.key(3), samples=3, **options)
  equal = [prompt for prompt in PROMPTS for _ in range(3)]
  apart = generate(config, params, equal, NEW, sampling, jax.random.key(3), **options)
  assert shared.tokens == apart.tokens and len({tuple(row) for row in shared.tokens}) > len(PROMPTS)
  np.testing.assert_allclose(np.concatenate(shared.log_probs), np.concatenate(apart.log_probs), atol=1e-5)


@pytest.mark.parametrize('name', ['rolling', *(pytest.param(name, marks=pytest.mark.slow)
                                             for name in ('local-global', 'everything', 'dense-banded'))])
def test_what_prompts_begin_with_may_be_read_once(name):
  """It is longer than the windows; the prompts go on at different lengths, one of them by a single token."""
  config, params = DECODERS[name], make_params(DECODERS[name])
  beginning = np.random.default_rng(0).integers(3, config.vocab_size, 34).tolist()
  prompts = [beginning + rest for rest in ([5], [6, 7, 8], [9, 10])]
  options = dict(log_probs=True, stop_tokens=(2,), execution=SCANNED, samples=2)
  request = (config, params, prompts, NEW, Sampling(1.2, top_k=30), jax.random.key(3))
  shared, apart = generate(*request, share_prefix=True, **options), generate(*request, **options)
  assert shared.tokens == apart.tokens
  np.testing.assert_allclose(np.concatenate(shared.log_probs), np.concatenate(apart.log_probs), atol=1e-5)


def test_a_beginning_is_cut_off_and_kept_apart():
  prompts = np.zeros((2, 48), np.int32)
  prompts[0, -40:], prompts[1, -36:] = np.arange(40), [*range(35), 99]
  rest, lengths, (beginning, length) = _without_prefix(prompts, np.array([40, 36], np.int32))
  assert lengths.tolist() == [5, 1] and length.tolist() == [35] and beginning[0, -35:].tolist() == [*range(35)]
  assert rest.shape == (2, 16) and rest[0, -5:].tolist() == [*range(35, 40)] and rest[1, -1] == 99
  assert _without_prefix(prompts[:1], lengths[:1])[2] is None  # alone
  assert _without_prefix(prompts[:, -20:], np.array([20, 20], np.int32))[2] is None  # nothing in common


def test_rows_end_where_they_are_said_to_end():
  params, new = make_params(GPT2), 24
  whole = generate(GPT2, params, PROMPTS, new, execution=SCANNED).tokens
  asked = []

  def ends(row, tokens):
    asked.append((row, len(tokens)))
    return row != 1 and len(tokens) >= 3

  cut = generate(GPT2, params, PROMPTS, new, execution=SCANNED, ends=ends).tokens
  assert cut == [whole[0][:17], whole[1], whole[2][:17]]  # asked after 1 token, after 17 and at the end
  assert (1, 17) in asked


def test_no_samples_are_refused():
  with pytest.raises(ConfigError, match='samples = 0: use a whole number of 1 or more'):
    generate(GPT2, {'nothing': np.zeros(1)}, [[1]], 1, samples=0)


def test_the_package_exports_lazily():
  assert llm_jax.generate is generate and llm_jax.Transformer is Transformer
  with pytest.raises(AttributeError):
    _ = llm_jax.nothing
