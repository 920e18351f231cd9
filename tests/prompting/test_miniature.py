"""What examples and passages are worth to a model that has learnt to read them: in small what
`experiments/prompting_miniature.py` shows."""
import json

import jax
import pytest

from llm_jax.config.data import Data, Weighted
from llm_jax.config.experiment import Bytes, Jsonl, LinearToZero, Muon, RetrievedAnswers, presets
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.harness.model import HarnessModel, Reader
from llm_jax.harness.statistics import difference
from llm_jax.harness.text import HarnessText
from llm_jax.modules.execution import Execution
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.few_shot import Layout, choose
from llm_jax.prompting.program import Exemplar, run_together
from llm_jax.prompting.retrieval import Question, likelihoods
from llm_jax.retrieve.bm25 import BM25
from llm_jax.retrieve.index import Index, save
from llm_jax.retrieve.passages import Passage
from tools import planted
from tools.training import QUICK_COMPILE, Training

RULES = ('same', 'upper')
PLAIN = 'User: {}\n\nAssistant:'  # as the template writes it
LINES = Layout('{}>', '', '\n')
STEPS, LENGTH = 200, 128


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('planted')
  planted.write(made, texts=1_000, persons=600, questions=40, rules=RULES, letters=2, digits=1)
  facts = [row['text'] for row in rows(made / 'facts.jsonl')]
  save(made / 'index', Index(tuple(Passage('facts', i, text) for i, text in enumerate(facts)), 'facts'))
  return made


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def text():
  return HarnessText(ByteTokenizer(), None, True, 257, LENGTH)


@pytest.fixture(scope='module')
def answerer(folder, text, tmp_path_factory):
  """A model that has learnt from texts of both kinds."""
  answers = RetrievedAnswers(f'{folder}/questions.jsonl', f'{folder}/index', template='plain', val_fraction=0.0)
  sources = Weighted(Jsonl(f'{folder}/rules.jsonl', val_fraction=0.0), 0.4), Weighted(answers, 0.6)
  learn = Stage('learn', Data(sources, packing='best_fit'), STEPS, LENGTH, 32, LinearToZero(5e-3, warmup=10),
                optimizer=Muon())
  model = presets.llama(d_model=32, num_layers=2, num_heads=4, vocab_size=257, tied_head=True, rope_theta=100.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('LLM_JAX_CACHE', str(tmp_path_factory.mktemp('cache')))
    for step in Training(Run(model, (learn,), Bytes()), learn, QUICK_COMPILE).steps(STEPS):
      params = jax.device_get(step.state.params) if step.number == STEPS else None
  reader = Reader(model, jax.device_put(params), Execution(unroll=False, kernels='xla'), (256,), batch_size=64)
  return HarnessAnswerer(HarnessModel(text, reader), lambda prompt, answer: len(text.encode_pair(prompt, answer)[1]))


def test_examples_beat_none_on_planted_rules(folder, answerer):
  """Which of two rules a word stands under, the lines before say."""
  asked = [(row['question'], row['answer'], name) for name in RULES for row in rows(folder / f'rule_{name}.jsonl')[4:]]
  shown = {name: [Exemplar(row['question'], row['answer']) for row in rows(folder / f'rule_{name}.jsonl')[:4]]
           for name in RULES}
  right = {}
  for shots in (0, 4):
    programs = [choose(question, (question, question.upper()), shown[name][:shots], layout=LINES)
                for question, _, name in asked]
    chosen = run_together(programs, answerer)
    right[shots] = [float((question, question.upper())[place] == answer)
                    for place, (question, answer, _) in zip(chosen, asked, strict=True)]
  found = difference(right[0], right[4])
  assert found.in_words.startswith('better') and found.estimate.interval[0] > 0.2, found.in_words
  assert 0.4 <= sum(right[0]) / len(asked) <= 0.6  # nothing but chance without them


def test_passages_beat_none_on_planted_facts(folder, answerer):
  """Of persons that the model has never read of."""
  facts = [row['text'] for row in rows(folder / 'facts.jsonl')]
  questions = [Question(row['question'], row['answer'], {facts.index(row['evidence'])})
               for row in rows(folder / 'test_questions.jsonl')]
  found = BM25(facts).search_all([question.question for question in questions], 1)
  by_prompt = {one.prompt: one for one in likelihoods(answerer, questions, facts, found, PLAIN.format)}
  assert by_prompt['retrieved'].gain.estimate.interval[0] > 0.5, by_prompt
  assert by_prompt['gold'].estimate.mean > by_prompt['random'].estimate.mean + 0.5
