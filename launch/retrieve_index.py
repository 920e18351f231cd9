"""What `launch.retrieve` does with an index: builds it, searches it, and reports how good it is."""
import argparse
import dataclasses
import json
import pathlib

from launch.retrieve_model import StatesModel, check_index, embedder_of, needs_states
from llm_jax.config.errors import ConfigError, require
from llm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.retrieve.bm25 import BM25
from llm_jax.retrieve.embed import WordLlama
from llm_jax.retrieve.index import Index, embedded, load, save, texts_fingerprint
from llm_jax.retrieve.passages import cut, read_texts
from llm_jax.retrieve.ranking import Retriever, recall

DEPTHS = (1, 5, 20)  # passages among which the right one is looked for


def run(args: argparse.Namespace) -> None:
  """args: as `launch.retrieve` has checked them. Raises ConfigError, and CheckpointError as `find_checkpoint`."""
  if args.build:
    build(args)
  if args.query is None and args.questions is None:
    return
  made_of = None
  if args.texts:
    texts = [text for path in args.texts for text in read_texts(path)]
    made_of = texts_fingerprint(texts, tokenizer_of(args).fingerprint, args.length, args.overlap)
  index = load(args.index, made_of)
  if args.query is not None:
    search(args, index)
  if args.questions is not None:
    report(args, index)


def tokenizer_of(args: argparse.Namespace) -> Tokenizer:
  return ByteTokenizer() if args.checkpoint is None else load_tokenizer(args.checkpoint / 'tokenizer')


def states_model(args: argparse.Namespace) -> StatesModel | None:
  return None if args.checkpoint is None else StatesModel.find(args.checkpoint, args.stage, args.step)


# ---------------------------------------------------------------------------------------------- building
def build(args: argparse.Namespace) -> None:
  tokenizer = tokenizer_of(args)
  texts = [text for path in args.texts for text in read_texts(path)]
  passages = cut(texts, tokenizer, args.length, args.overlap)
  BM25([passage.text for passage in passages])  # refuses texts without a word
  vectors = None
  match args.embed:
    case 'states':
      model = states_model(args)
      assert model is not None
      vectors = embedded(passages, model.embedder())
    case 'wordllama':
      vectors = embedded(passages, WordLlama())
    case _:
      pass
  made_of = texts_fingerprint(texts, tokenizer.fingerprint, args.length, args.overlap)
  save(args.index, Index(tuple(passages), made_of, vectors))
  print(f'{args.index}: {len(passages)} passages of {len(texts)} texts')


# ---------------------------------------------------------------------------------------------- searching
def search(args: argparse.Namespace, index: Index) -> None:
  retriever = retriever_of(args, index, args.method or index.methods[-1])
  [found] = retriever.search_all([args.query], args.top)
  for place in found:
    passage = index.passages[place]
    print(f'{passage.source}, token {passage.start}\n{passage.text}')


def retriever_of(args: argparse.Namespace, index: Index, method: str) -> Retriever:
  model = states_model(args) if needs_states(index, method) else None
  check_index(index, method, model)
  return index.retriever(method, embedder_of(index, method, model))


# ---------------------------------------------------------------------------------------------- reporting
def report(args: argparse.Namespace, index: Index) -> None:
  """How often the right passage is found, by every method, and with a checkpoint the likelihood of the answers."""
  questions = read_questions(args.questions, index)
  methods = index.methods if args.method is None else (args.method,)
  found: list[list[int]] = []
  print(f'{len(questions)} questions, {len(index.passages)} passages')
  print('  '.join(['method', *(f'recall@{depth}' for depth in DEPTHS)]))
  for method in methods:
    found = retriever_of(args, index, method).search_all([question for question, _, _ in questions], max(DEPTHS))
    shares = [recall([places[:depth] for places in found], [gold for _, _, gold in questions]) for depth in DEPTHS]
    print('  '.join([f'{method:6}', *(f'{share:.3f}'.ljust(8) for share in shares)]).rstrip())
  if args.checkpoint is not None:
    print_likelihoods(args, index, questions, found, methods[-1])


def print_likelihoods(args: argparse.Namespace, index: Index, questions: list[tuple[str, str, set[int]]],
                      found: list[list[int]], method: str) -> None:
  from launch.evaluate_flags import parse
  from launch.evaluate_model import Saved, text_of
  from llm_jax.harness.model import HarnessModel
  from llm_jax.prompting.answerer import HarnessAnswerer
  from llm_jax.prompting.retrieval import Question, likelihoods
  chat = ['--chat'] if args.chat else []
  flags = parse([f'--checkpoint={args.checkpoint}', '--tasks=', *chat], '')
  flags = dataclasses.replace(flags, stage=args.stage, step=args.step)
  saved = Saved.find(flags, args.checkpoint)
  text = text_of(flags, saved)
  answerer = HarnessAnswerer(HarnessModel(text, saved.read(flags, text)),
                             lambda prompt, answer: len(text.encode_pair(prompt, answer)[1]))

  def put(said: str) -> str:
    return text.render([{'role': 'user', 'content': said}]) if args.chat else args.prompt.replace('{}', said)

  print('passage, log-probability of the answer in nats:')
  for one in likelihoods(answerer, [Question(*question) for question in questions], index.texts, found, put):
    name = f'{one.prompt} ({method})' if one.prompt == 'retrieved' else one.prompt
    gain = '' if one.gain is None else f'  {one.gain.in_words}'
    print(f'  {name:18}  {one.estimate.mean:9.3f} ± {one.estimate.error:.3f}{gain}')


def read_questions(path: pathlib.Path, index: Index) -> list[tuple[str, str, set[int]]]:
  """(question, answer, numbers of the passages that hold the evidence).

  Raises:
    ConfigError: the file cannot be read, a row is damaged, or no passage holds its evidence.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, ValueError) as error:
    raise ConfigError('--questions', str(path), f'cannot be read ({error})') from error
  found: list[tuple[str, str, set[int]]] = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    try:
      row = json.loads(line)
      question, answer = row['question'], row['answer']
      evidence = row.get('evidence', answer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ConfigError(where, line[:60], f"needs a 'question' and an 'answer' ({error})") from error
    for name, value in (('question', question), ('answer', answer), ('evidence', evidence)):
      require(isinstance(value, str) and bool(value.strip()), where, f'{name}={value!r}', 'give a text')
    gold = {place for place, text in enumerate(index.texts) if evidence in text}
    require(bool(gold), where, evidence[:60], 'is in no passage: correct it, or leave the row out')
    found.append((question, answer, gold))
  require(len(found) > 0, '--questions', str(path), 'it holds no question')
  return found
