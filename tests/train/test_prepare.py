"""launch.prepare: what it makes is what training reads."""
import pathlib

import pytest

from launch import prepare
from launch.experiment_file import load_run
from llm_jax.data import token_store
from llm_jax.data.dataset import open_dataset, training_texts
from llm_jax.data.tokenizers.base import make_tokenizer

EXPERIMENT = pathlib.Path(__file__).parent / 'tiny_recipe.py'


@pytest.fixture
def config(recipe_corpus, tmp_path, monkeypatch):
  monkeypatch.setenv('LLM_JAX_CACHE', str(tmp_path / 'cache'))
  return f'{EXPERIMENT}:{recipe_corpus.parent}'


def test_training_finds_all_tokens(config, tmp_path, capsys, monkeypatch):
  """In two parts, each by two processes; a second time nothing is made anew."""
  for part in ('0/2', '1/2'):
    assert prepare.main([f'--config={config}', '--workers=2', f'--part={part}']) == 0
  lines = capsys.readouterr().out.splitlines()
  run = load_run(config, ())
  assert len(lines) == len(prepare.pieces_of(run)) == len(list((tmp_path / 'cache' / 'tokens').glob('*/')))

  monkeypatch.setattr(token_store, '_build', None)  # nothing is left to be tokenised
  tokenizer = make_tokenizer(run.tokenizer, lambda: training_texts(run.stages[0].data))
  for stage in run.stages:
    for split, data in (('train', stage.data), ('validation', stage.validation_data)):
      dataset = open_dataset(data, tokenizer, seq_len=stage.seq_len, seed=0, split=split, steps=stage.steps,
                             phases=stage.phases)
      assert dataset is None or dataset.num_tokens > 0


@pytest.mark.parametrize('flags, message', (
  (('--part=2/2',), '--part=2/2: write it as I/N'),
  (('--workers=0',), '--workers = 0: use 1 or more'),
  (('--config.stages[0].steps=-1',), 'steps = -1'),
))
def test_wrong_input_is_one_line(flags, message, config, capsys):
  with pytest.raises(SystemExit) as ended:
    prepare.main([f'--config={config}', *flags])
  assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_bad_file_is_named_by_the_process_that_reads_it(config, recipe_corpus, capsys):
  bad = recipe_corpus.parent / 'bad.jsonl'
  bad.write_text('{"messages": 3}\n' * 20)
  with pytest.raises(SystemExit):
    prepare.main([f'--config={config}', f'--config.stages[3].data.sources[0].source.path={bad}', '--workers=1'])
  assert 'bad.jsonl' in capsys.readouterr().err.splitlines()[-1]
