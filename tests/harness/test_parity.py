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
ENDS = (CONTROL['<|im_end|>'], CONTROL['<|endoftext|>'])
VOCAB, LENGTH = 259, 256
WINDOW = dict(sliding_window=40)  # shorter than the prompts
SIZE = dict(vocab_size=VOCAB, max_position_embeddings=LENGTH)
FAMILIES = {
  'gpt2': hf_models.gpt2(vocab_size=VOCAB, n_positions=LENGTH),
  'openai': hf_models.openai(vocab_size=VOCAB, n_positions=LENGTH),
  'gpt_neox': hf_models.gpt_neox(**SIZE),
  'llama': hf_models.llama(**SIZE),
  'mistral': hf_models.mistral(**SIZE, **WINDOW),
  'mixtral': hf_models.mixtral(**SIZE, **WINDOW),
  'gpt_oss': hf_models.gpt_oss(**SIZE, **WINDOW),
  'phi3': hf_models.phi3(**SIZE, **WINDOW),
  'gemma': hf_models.gemma(**SIZE),
  'gemma2': hf_models.gemma2(**SIZE, **WINDOW),
  'gemma3': hf_models.gemma3(**SIZE, **WINDOW),
  'qwen2': hf_models.qwen2(**SIZE),
  'qwen3': hf_models.qwen3(**SIZE),
  'qwen3_moe': hf_models.qwen3_moe(**SIZE),
  'olmo2': hf_models.olmo2(**SIZE),
  'olmo3': hf_models.olmo3(**SIZE, **WINDOW),
  'smollm3': hf_models.smollm3(**SIZE),
  'deepseek': hf_models.deepseek(**SIZE),
}
CHAT_TASKS = ('choices', 'letters', 'last_word', 'written')


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
      model = hf_models.make(FAMILIES[family])
      # Without them transformers writes on behind the end of a text while another row of the batch is not at its end.
      model.config.eos_token_id = model.generation_config.eos_token_id = [*ENDS]
      model.save_pretrained(folder)
      for name, content in tokenizer_files(byte_tokenizer(), 'chatml').items():
        (folder / name).write_bytes(content)
      made[family] = folder
    return made[family]

  return make


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  return small_tasks.write(tmp_path_factory.mktemp('tasks'))


def ask(tasks, shots, names=tuple(small_tasks.TASKS)):
  data = {name: tasks / 'rows.jsonl' for name in names}
  return TaskSource(names, data, num_fewshot=shots, own=scan(tasks))


def prepared(source, template=None, **asking):
  asking = Asking(**{'truncate': True} | asking)
  text = HarnessText(byte_tokenizer(), template, True, VOCAB, LENGTH, like_hf=True)
  return text, asking, prepare(source, asking, text)


def ours(folder, text, asking, tasks, **options):
  config, params = hf.load_pretrained(folder)
  model = HarnessModel(text, Reader(config, jax.device_put(params), SCANNED, ENDS, **options))
  return run(model, tasks, asking, text.template is not None)


def theirs(folder, text, asking, tasks):
  with quiet():
    backend = HFLM(str(folder), device='cpu', dtype='float32', batch_size=8, max_length=LENGTH,
                   add_bos_token=False if text.template else None)
  return run(backend, tasks, asking, text.template is not None)


def check(one, other, least=40):
  found = compare_backends(one, other)
  assert found.items >= least and found.agrees, '\n'.join(item.in_words for item in (*found.answers, *found.scores))
  for task, values in other['results'].items():
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    assert {name: one['results'][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-5), task


def check_parity(folder, source, template=None, **asking):
  asked = prepared(source, template, **asking)
  check(ours(folder, *asked), theirs(folder, *asked), 8 * len(source.names))


def test_scores_texts_and_metrics_are_those_of_the_hf_backend(folder_of, tasks):
  check_parity(folder_of('llama'), ask(tasks, 2))


@pytest.mark.slow
@pytest.mark.parametrize('shots', [0, 5])
@pytest.mark.parametrize('family', FAMILIES)
def test_they_are_for_every_family(folder_of, tasks, family, shots):
  """As texts, and as conversations."""
  check_parity(folder_of(family), ask(tasks, shots))
  check_parity(folder_of(family), ask(tasks, shots, CHAT_TASKS), 'chatml')


@pytest.mark.slow
def test_so_are_those_of_conversations_with_a_system_message_and_all_examples_in_one_turn(folder_of, tasks):
  check_parity(folder_of('llama'), ask(tasks, 2, CHAT_TASKS), 'chatml', multiturn=False, system='Answer.')


@pytest.mark.slow
@pytest.mark.parametrize('family', ['llama', 'gemma2', 'deepseek'])
def test_neither_the_batch_nor_the_way_of_reading_changes_anything(folder_of, tasks, family):
  asked = prepared(ask(tasks, 2))
  expected = theirs(folder_of(family), *asked)
  for batch_size in (1, 3, 16):
    for share_prefixes in (True, False):
      found = ours(folder_of(family), *asked, batch_size=batch_size, share_prefixes=share_prefixes)
      check(found, expected)
