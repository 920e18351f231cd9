"""What golden curves are recorded of: every family, every objective, and what else changes how a stage is trained.

A case is a run of one tiny stage; of those whose names begin with `data_` only the rows are recorded. Families are
those of experiments/family.py, made narrow, so that a new one there is a case here. A new objective needs a row in
OBJECTIVES.
"""
import dataclasses
import functools
import pathlib
import typing
from collections.abc import Callable

from experiments.family import FAMILIES
from llm_jax.config import objectives
from llm_jax.config.data import Data, Weighted
from llm_jax.config.errors import require
from llm_jax.config.model.architecture import Architecture
from llm_jax.config.objectives import (
  DPO,
  IPO,
  KTO,
  ORPO,
  APODown,
  APOZero,
  Classification,
  Distillation,
  LanguageModel,
  RewardModel,
  SimPO,
  SLiC,
)
from llm_jax.config.optimizers import Muon
from llm_jax.config.ramp import Ramp
from llm_jax.config.rows import PROMPTS
from llm_jax.config.run import Run
from llm_jax.config.schedules import WSD, Cosine
from llm_jax.config.sources import Conversations, Jsonl, LabelledJsonl, NeedleTexts, Preferences, RatedAnswers, Source
from llm_jax.config.stage import Stage
from llm_jax.config.stage_init import Params
from llm_jax.config.tokenizers import BPE
from tools.golden_data import CHATS, LABELLED, LABELLED_PAIRS, LABELS, MADE_UP, PAIRS, RATED, TEXTS

STEPS = 20
VOCAB_SIZE = 272  # at least the 257 of the tokenizer of bytes
COMMON: dict[str, typing.Any] = dict(steps=STEPS, seq_len=48, batch_size=4, learning_rate=Cosine(peak=3e-3, warmup=2))

# The objective, with options that are not its defaults where they add a term, and the data that it learns from.
OBJECTIVES: dict[str, tuple[typing.Any, Callable[[pathlib.Path], Source]]] = {
  'LanguageModel': (LanguageModel(z_loss=1e-2), lambda folder: texts(folder)),
  'Distillation': (Distillation(Params('before'), divergence=0.3, nll_weight=0.5), lambda folder: texts(folder)),
  'Classification': (Classification(), lambda folder: LabelledJsonl(f'{folder}/{LABELLED}', LABELS)),
  'DPO': (DPO(nll_weight=0.2, label_smoothing=0.1), lambda folder: pairs(folder)),
  'IPO': (IPO(), lambda folder: pairs(folder)),
  'SLiC': (SLiC(), lambda folder: pairs(folder)),
  'APOZero': (APOZero(), lambda folder: pairs(folder)),
  'APODown': (APODown(), lambda folder: pairs(folder)),
  'ORPO': (ORPO(), lambda folder: pairs(folder)),
  'SimPO': (SimPO(), lambda folder: pairs(folder)),
  'RewardModel': (RewardModel(center=0.01), lambda folder: pairs(folder)),
  'KTO': (KTO(desirable_weight=1.5), lambda folder: RatedAnswers(f'{folder}/{RATED}', template='plain')),
}


def cases() -> dict[str, Callable[[pathlib.Path], Run]]:
  """The run of every case, by name; each is made with the folder that holds the data."""
  found: dict[str, Callable[[pathlib.Path], Run]] = {}
  for name in FAMILIES:
    found[f'family_{name}'] = lambda folder, name=name: family(name, folder)
  for name in objective_names():
    found[f'objective_{name}'] = lambda folder, name=name: objective(name, folder)
  for name, make in RECIPES.items():
    found[f'recipe_{name}'] = make
  for name, make_data in DATA.items():
    found[f'data_{name}'] = lambda folder, make_data=make_data: rows_of(make_data(folder), folder)
  return found


def objective_names() -> list[str]:
  """Of every objective that learns from data. Where a model learns from its own answers, one token that is drawn
  otherwise, by a last digit, changes all that comes after."""
  return [kind.__name__ for kind in typing.get_args(objectives.Objective) if kind.rows != PROMPTS]


# ---------------------------------------------------------------------------------------------- runs
def family(name: str, folder: pathlib.Path) -> Run:
  """A family learns plain text. Rows are longer than its windows."""
  return one_stage(narrow(FAMILIES[name]), Data((Weighted(texts(folder)),)))


def objective(name: str, folder: pathlib.Path) -> Run:
  """An objective learns from its data. The stage before it, which is not trained, is what a reference stands for."""
  require(name in OBJECTIVES, 'objective', name, 'give it a row in OBJECTIVES of tools/golden_cases.py')
  kind, source_of = OBJECTIVES[name]
  before = Stage('before', Data((Weighted(texts(folder)),)), **COMMON)
  golden = Stage('golden', Data((Weighted(source_of(folder)),)), objective=kind, init=Params('before'),
                 **{**COMMON, 'learning_rate': Cosine(peak=1e-3, warmup=2)})
  return Run(narrow(FAMILIES['llama2']), (before, golden), dtype='float32')


def muon(folder: pathlib.Path) -> Run:
  """Muon, microbatches, a moving average, recomputed blocks."""
  return one_stage(narrow(FAMILIES['llama2']), Data((Weighted(texts(folder)),)), optimizer=Muon(), microbatches=2,
                   ema=0.9, remat='block', learning_rate=WSD(peak=1e-2, warmup=2))


def mixture(folder: pathlib.Path) -> Run:
  """Documents kept whole, conversations beside text with a weight that changes, and a ramp."""
  chats = Conversations(f'{folder}/{CHATS}', template='plain')
  data = Data((Weighted(texts(folder)), Weighted(chats, ((0.0, 0.5), (1.0, 2.0)))), packing='best_fit')
  return one_stage(narrow(FAMILIES['llama2']), data, ramp=(Ramp(tokens=1_920, batch_size=6, seq_len=96),))


RECIPES: dict[str, Callable[[pathlib.Path], Run]] = {'muon': muon, 'mixture': mixture}


# ---------------------------------------------------------------------------------------------- rows
def long_and_short(folder: pathlib.Path, packing: str) -> Data:
  rising = Weighted(made_up(folder), ((0.0, 1.0), (0.5, 1.0), (1.0, 4.0)))
  return Data((Weighted(texts(folder)), rising), packing=packing)


def needles(folder: pathlib.Path) -> Data:
  return Data((Weighted(NeedleTexts(made_up(folder), spacing=8)), Weighted(made_up(folder))))


def chats(folder: pathlib.Path) -> Data:
  conversations = Conversations(f'{folder}/{CHATS}', template='chatml', val_fraction=0.1)
  return Data((Weighted(conversations), Weighted(texts(folder))), packing='best_fit')


def all_tokens_of_pairs(folder: pathlib.Path) -> Data:
  source = Preferences(f'{folder}/{PAIRS}', template='chatml', mask_formatting=False, val_fraction=0.1)
  return Data((Weighted(source), Weighted(pairs(folder, 'chatml'))))


def two_texts_with_a_class(folder: pathlib.Path) -> Data:
  source = LabelledJsonl(f'{folder}/{LABELLED_PAIRS}', LABELS, pair='pair', special_tokens=SPECIAL_TOKENS)
  return Data((Weighted(source),))


SPECIAL_TOKENS = ('<|im_start|>', '<|im_end|>', '')
DATA: dict[str, Callable[[pathlib.Path], Data]] = {
  'concat': lambda folder: long_and_short(folder, 'concat'),
  'best_fit': lambda folder: long_and_short(folder, 'best_fit'),
  'needles': needles,
  'chats': chats,
  'pairs': all_tokens_of_pairs,
  'labelled': two_texts_with_a_class,
}


def rows_of(data: Data, folder: pathlib.Path) -> Run:
  """A run that reads `data` for more than an epoch, with a ramp where the data may have one."""
  tokenizer = BPE(vocab_size=768, special_tokens=SPECIAL_TOKENS[:2])
  model = dataclasses.replace(narrow(FAMILIES['llama2']), vocab_size=tokenizer.vocab_size)
  ramp = (Ramp(4_096, 8, 64), Ramp(20_480, 16, 64), Ramp(40_960, 8, 128)) if data.rows.is_packed else ()
  short = functools.partial(Stage, seq_len=64, batch_size=4, learning_rate=Cosine(peak=1e-3))
  before = short('before', Data((Weighted(made_up(folder)), Weighted(texts(folder)))), steps=1)
  objective = next(kind for kind, _ in OBJECTIVES.values() if kind.rows == data.rows and not kind.has_reference)
  golden = short('golden', data, steps=120, objective=objective, ramp=ramp)
  return Run(model, (before, golden), tokenizer)


# ---------------------------------------------------------------------------------------------- parts
def one_stage(model: Architecture, data: Data, **fields: typing.Any) -> Run:
  """A run of the stage that is recorded."""
  return Run(model, (Stage('golden', data, **(COMMON | fields)),), dtype='float32')


def narrow(model: Architecture) -> Architecture:
  """The same family with the fewest layers from two on, 48 wide, and windows of 16 tokens."""
  repeats = 2 if len(model.prefix) + len(model.pattern) < 2 else 1
  return dataclasses.replace(
    model, d_model=48, vocab_size=VOCAB_SIZE, num_layers=len(model.prefix) + repeats * len(model.pattern),
    pattern=tuple(narrow_window(block) for block in model.pattern))


def narrow_window(block: typing.Any) -> typing.Any:
  if getattr(block.attention, 'window', None) is None:
    return block
  return dataclasses.replace(block, attention=dataclasses.replace(block.attention, window=16))


def texts(folder: pathlib.Path) -> Jsonl:
  return Jsonl(f'{folder}/{TEXTS}', val_fraction=0.1)


def made_up(folder: pathlib.Path) -> Jsonl:
  return Jsonl(f'{folder}/{MADE_UP}', val_fraction=0.1)


def pairs(folder: pathlib.Path, template: str = 'plain') -> Preferences:
  return Preferences(f'{folder}/{PAIRS}', template=template, val_fraction=0.1)
