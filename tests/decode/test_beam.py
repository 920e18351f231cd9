"""Beam search against transformers' own, continuations and scores."""
import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

import llm_jax
from llm_jax import hf
from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.run import Mesh
from llm_jax.decode.beam import beam_search
from llm_jax.decode.generate import generate
from llm_jax.modules.execution import Execution
from llm_jax.sharding.mesh import make_mesh
from llm_jax.sharding.rules import param_shardings

VOCAB, NEW = 36, 9
SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster
PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10, 11, 12, 13]]
LLAMA = presets.llama(16, 2, num_heads=2, d_ff=24, vocab_size=VOCAB)
SIZES = {
  'gpt2': transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=32, n_layer=2, n_head=4,
                                  bos_token_id=None, eos_token_id=None, pad_token_id=0),
  'llama': transformers.LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                    num_attention_heads=4, num_key_value_heads=2, bos_token_id=None,
                                    eos_token_id=None, pad_token_id=0)}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """By family: a random model of transformers, and what we read from its folder."""
  made = {}
  for family, config in SIZES.items():
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
      for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    folder = tmp_path_factory.mktemp(family)
    theirs.save_pretrained(folder)
    made[family] = theirs, *hf.load_pretrained(folder)
  return made


def expected(theirs, prompt, beams, stops, **settings):
  """(continuation, score) of every beam by transformers, padding taken off."""
  given = torch.tensor([prompt])
  out = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, do_sample=False,
                        num_beams=beams, num_return_sequences=beams, eos_token_id=list(stops) or None, pad_token_id=0,
                        return_dict_in_generate=True, output_scores=True, **settings)
  found = []
  for row, score in zip(out.sequences[:, len(prompt):].tolist(), out.sequences_scores.tolist(), strict=True):
    end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
    found.append((row[:end], score))
  return found


CASES = [
  pytest.param('gpt2', 3, (), {}, marks=pytest.mark.slow),
  ('gpt2', 3, (4, 17, 20, 30, 8, 12), {}),
  pytest.param('gpt2', 3, (4, 17, 20, 30, 8), dict(length_penalty=-1.0), marks=pytest.mark.slow),
  ('gpt2', 7, (4, 17, 20, 30), dict(early_stopping='never', length_penalty=np.float32(0.0))),
  pytest.param('llama', 3, (4, 17, 20, 30, 8), dict(length_penalty=0.0), marks=pytest.mark.slow),
  ('llama', 4, (4, 17, 20, 30, 8, 12, 3), dict(early_stopping=True)),
  ('llama', 3, (4, 17, 20, 30, 8, 12, 3), dict(early_stopping='never', length_penalty=0.7)),
]


@pytest.mark.parametrize('family,beams,stops,settings', CASES)
def test_equals_transformers(pairs, family, beams, stops, settings):
  theirs, config, params = pairs[family]
  ours = beam_search(config, params, PROMPTS, NEW, beams, stop_tokens=stops, execution=SCANNED, **settings)
  check(theirs, ours, beams, stops, **settings)
  lengths = {len(tokens) for found in ours.tokens for tokens in found}
  assert (len(lengths) > 1) == bool(stops)  # with stops, some ended before the others


def test_rolling_cache_equals_transformers():
  """Beams are reordered in caches that roll too: Mistral, from before its window to past it."""
  torch.manual_seed(0)
  theirs = transformers.MistralForCausalLM(transformers.MistralConfig(
      vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
      num_key_value_heads=2, sliding_window=4, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
      pad_token_id=0, initializer_range=0.3)).eval()
  params = hf.params_from_state_dict(LLAMA, {k: v.numpy() for k, v in theirs.state_dict().items()})
  [block] = LLAMA.pattern
  block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=4))
  ours = beam_search(dataclasses.replace(LLAMA, pattern=(block,)), params, PROMPTS, NEW, 3, stop_tokens=(4, 17),
                     execution=SCANNED)
  check(theirs, ours, 3, (4, 17))


def check(theirs, ours, beams, stops, **settings):
  for prompt, tokens, scores in zip(PROMPTS, ours.tokens, ours.scores, strict=True):
    their_tokens, their_scores = zip(*expected(theirs, prompt, beams, stops, **settings), strict=True)
    assert tokens == list(their_tokens)
    np.testing.assert_allclose(scores, their_scores, rtol=2e-6)


def test_one_beam_is_greedy(pairs):
  _, config, params = pairs['llama']
  found = beam_search(config, params, PROMPTS, NEW, 1)
  greedy = generate(config, params, PROMPTS, NEW, log_probs=True)
  assert [row for [row] in found.tokens] == greedy.tokens
  np.testing.assert_allclose([score for [score] in found.scores], np.mean(greedy.log_probs, axis=1), rtol=1e-5)


def test_finds_the_best_of_all():
  """With as many beams as there are continuations but the last token, the search is exhaustive."""
  config = dataclasses.replace(LLAMA, vocab_size=7)
  params = jax.jit(llm_jax.Transformer(config).init)(jax.random.key(0), np.zeros((1, 1), np.int32))['params']
  params = jax.tree.map(lambda w: 8 * w, params)
  every = np.array([[a, b, c] for a in range(7) for b in range(7) for c in range(7)])
  whole = np.concatenate([np.full((343, 1), 3), every], axis=1)
  log_probs = jax.nn.log_softmax(jax.jit(llm_jax.Transformer(config).apply)({'params': params}, whole))
  sums = np.take_along_axis(np.array(log_probs)[:, :-1], every[..., None], axis=-1)[..., 0].sum(axis=1)
  found = llm_jax.beam_search(config, params, [[3]], 3, 49, length_penalty=0.0, execution=SCANNED)
  best = np.argsort(-sums)[:49]
  assert found.tokens[0] == every[best].tolist()
  np.testing.assert_allclose(found.scores[0], sums[best], rtol=1e-5)


def test_a_mesh_changes_nothing(pairs):
  _, config, params = pairs['llama']
  request = (PROMPTS, NEW, 4), dict(stop_tokens=CASES[-2][2], early_stopping=True, execution=SCANNED)
  expected = beam_search(config, params, *request[0], **request[1])
  mesh = make_mesh(Mesh(data=1, tensor=2, fsdp=4))
  found = beam_search(config, jax.device_put(params, param_shardings(params, mesh)), *request[0], **request[1])
  assert found.tokens == expected.tokens
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.parametrize('settings,field', [
    (dict(num_beams=0), 'num_beams'), (dict(stop_tokens=range(VOCAB)), 'stop_tokens'),
    (dict(early_stopping='yes'), 'early_stopping'), (dict(max_new_tokens=0), 'max_new_tokens')])
def test_wrong_requests_are_named(settings, field):
  with pytest.raises(ConfigError, match=field):
    beam_search(LLAMA, {'nothing': np.zeros(1)}, PROMPTS, **dict(max_new_tokens=NEW, num_beams=2) | settings)
