"""The scores are those of lm-evaluation-harness's own `hf` backend on the same folder, question by question."""
import os

os.environ['HF_DATASETS_OFFLINE'] = '1'

import jax  # noqa: E402
import pytest  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from llm_jax import hf  # noqa: E402
from llm_jax.data.tokenizers.byte_level import RankTokenizer  # noqa: E402
from llm_jax.harness.compare import compare_backends  # noqa: E402
from llm_jax.harness.index import scan  # noqa: E402
from llm_jax.harness.model import HarnessModel, Reader  # noqa: E402
from llm_jax.harness.run import Asking, prepare, quiet, run  # noqa: E402
from llm_jax.harness.tasks import TaskSource  # noqa: E402
from llm_jax.harness.text import HarnessText  # noqa: E402
from llm_jax.hf.tokenizer import tokenizer_files  # noqa: E402
from llm_jax.modules.execution import Execution  # noqa: E402
from tests.harness import small_tasks  # noqa: E402
from tests.hf import hf_models  # noqa: E402

SCANNED = Execution(unroll=False, kernels='xla')  # compiles faster
CONTROL = {'<|im_start|>': 256, '<|im_end|>': 257, '<|endoftext|>': 258}
VOCAB, LENGTH = 259, 256
FAMILIES = {
  'llama': hf_models.llama(vocab_size=VOCAB, max_position_embeddings=LENGTH),
  'gpt2': hf_models.gpt2(vocab_size=VOCAB, n_positions=LENGTH),
  'mistral': hf_models.mistral(vocab_size=VOCAB, sliding_window=40, max_position_embeddings=LENGTH),
  'gemma2': hf_models.gemma2(vocab_size=VOCAB, sliding_window=40, max_position_embeddings=LENGTH),
  'deepseek': hf_models.deepseek(vocab_size=VOCAB, max_position_embeddings=LENGTH),
}


def byte_tokenizer():
  """Bytes, and the control tokens of ChatML."""
  return RankTokenizer({bytes([i]): i for i in range(256)}, r'\S+|\s+', tuple(CONTROL), '<|endoftext|>')


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory):
  """(family) -> its folder, with the tokenizer and its chat template."""
  made = {}

  def make(family):
    if family not in made:
      folder = tmp_path_factory.mktemp(family)
      hf_models.make(FAMILIES[family]).save_pretrained(folder)
      for name, content in tokenizer_files(byte_tokenizer(), 'chatml').items():
        (folder / name).write_bytes(content)
      made[family] = folder
    return made[family]

  return make


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  return small_tasks.write(tmp_path_factory.mktemp('tasks'))


def ask(tasks, shots):
  names = tuple(small_tasks.TASKS)
  data = {name: tasks / 'rows.jsonl' for name in names}
  return TaskSource(names, data, num_fewshot=shots, own=scan(tasks))


def both(folder, source, template=None, **asking):
  """(ours, theirs) of the same questions."""
  asking = Asking(**{'truncate': True} | asking)
  tokenizer = byte_tokenizer()
  config, params = hf.load_pretrained(folder)
  text = HarnessText(tokenizer, template, True, VOCAB, LENGTH, like_hf=True)
  prepared = prepare(source, asking, text)
  ends = (CONTROL['<|im_end|>'], tokenizer.eot) if template else (tokenizer.eot,)
  model = HarnessModel(text, Reader(config, jax.device_put(params), SCANNED, ends))
  ours = run(model, prepared, asking, template is not None)
  with quiet():
    theirs = HFLM(str(folder), device='cpu', dtype='float32', batch_size=8, max_length=LENGTH,
                  add_bos_token=False if template else None)
  return ours, run(theirs, prepared, asking, template is not None)


def check(ours, theirs):
  found = compare_backends(ours, theirs)
  assert found.items >= 40 and found.agrees, '\n'.join(item.in_words for item in (*found.answers, *found.scores))
  for task, values in theirs['results'].items():
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    assert {name: ours['results'][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-5), task


@pytest.mark.parametrize('family, shots', [
  ('llama', 2), *(pytest.param(family, shots, marks=pytest.mark.slow) for family in FAMILIES for shots in (0, 5))])
def test_scores_texts_and_metrics_are_those_of_the_hf_backend(folder_of, tasks, family, shots):
  check(*both(folder_of(family), ask(tasks, shots)))


@pytest.mark.slow
@pytest.mark.parametrize('multiturn', [True, False])
def test_so_are_those_of_conversations(folder_of, tasks, multiturn):
  source = ask(tasks, 2)
  names = ('choices', 'letters', 'written')
  source = TaskSource(names, {name: source.data[name] for name in names}, num_fewshot=2, own=source.own)
  ours, theirs = both(folder_of('llama'), source, 'chatml', multiturn=multiturn, system='Answer.')
  found = compare_backends(ours, theirs)
  assert found.items == 24 and found.agrees, '\n'.join(item.in_words for item in (*found.answers, *found.scores))
