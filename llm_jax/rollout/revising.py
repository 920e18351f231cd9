"""Answers that a model criticises and revises by principles (Bai et al. 2022, Constitutional AI, section 3.1)."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.config.revisions import Principle

Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Said:
  """What a model says to a conversation.   ended: whether it ended by itself; else it was cut off."""
  text: str
  ended: bool

  @property
  def is_whole(self) -> bool:
    """Whether it ended by itself and says something."""
    return self.ended and bool(self.text.strip())


@dataclasses.dataclass(frozen=True)
class Revision:
  """What became of one revision.

  principle: its place in the list.
  critique: of the answer before; None where the principle asks for none.
  revised: None where the critique was cut off or says nothing, so that no revision was asked for.
  """
  principle: int
  critique: Said | None
  revised: Said | None

  @property
  def is_kept(self) -> bool:
    """Whether it takes the place of the answer before."""
    return self.revised is not None and self.revised.is_whole


# (what conversations to go on with, a number that no other call has) -> what the model says to each.
Ask = Callable[[Sequence[Conversation], int], Sequence[Said]]


def revise(principles: Sequence[Principle], prompts: Sequence[Conversation], answers: Sequence[Said],
           drawn: np.ndarray, ask: Ask) -> list[list[Revision]]:
  """The revisions of each answer in turn, each of the last one that was kept. An answer that is not whole has none.

  Args:
    prompts: conversations that end with the user.
    drawn: the principle of each revision, int [revisions, prompts].
    ask: called twice for a revision of all answers, once for critiques and once for what is revised, with the numbers
      0, 1, 2 and so on.
  """
  current = list(answers)
  found: list[list[Revision]] = [[] for _ in prompts]
  places = [place for place, answer in enumerate(answers) if answer.is_whole]
  for number, of_prompts in enumerate(drawn):
    chosen = {place: principles[of_prompts[place]] for place in places}
    answered = {place: [*prompts[place], said_by('assistant', current[place].text)] for place in places}
    critiques = _criticise(chosen, answered, ask, 2 * number)
    asked: dict[int, list[Message]] = {}
    for place in places:
      critique = critiques.get(place)
      if critique is None or critique.is_whole:
        behind = () if critique is None else _criticised(chosen[place], critique)
        asked[place] = [*answered[place], *behind, said_by('user', chosen[place].revision)]
    revised = dict(zip(asked, ask(list(asked.values()), 2 * number + 1) if asked else (), strict=True))
    for place in places:
      revision = Revision(int(of_prompts[place]), critiques.get(place), revised.get(place))
      found[place].append(revision)
      if revision.is_kept:
        current[place] = revised[place]
  return found


def _criticise(chosen: Mapping[int, Principle], answered: Mapping[int, Conversation], ask: Ask, number: int
               ) -> dict[int, Said]:
  """What is said of the answers whose principles ask for a critique, by place."""
  asked = {place: [*answered[place], said_by('user', principle.critique)] for place, principle in chosen.items()
           if principle.critique is not None}
  return dict(zip(asked, ask(list(asked.values()), number) if asked else (), strict=True))


def _criticised(principle: Principle, critique: Said) -> Conversation:
  return [said_by('user', principle.critique), said_by('assistant', critique.text)]


def to_record(prompt: Any, columns: Mapping[str, Any], answer: Said, revisions: Sequence[Revision]) -> dict[str, Any]:
  """What is written down of one prompt, as JSON values."""
  told = [{
    'principle': revision.principle,
    'critique': None if revision.critique is None else revision.critique.text,
    'text': None if revision.revised is None else revision.revised.text,
    'kept': revision.is_kept,
  } for revision in revisions]
  return {'prompt': prompt, 'columns': columns, 'answer': dataclasses.asdict(answer), 'revisions': told}


def numbers_of_revisions(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """For people: how many answers ended, and what became of their revisions."""
  revisions = [revision for record in records for revision in record['revisions']]
  changed = [record['revisions'][-1]['text'] != record['answer']['text'] for record in records if record['revisions']]
  return {
    'prompts': len(records),
    'cut_off': float(np.mean([not record['answer']['ended'] for record in records])),
    'kept': float(np.mean([revision['kept'] for revision in revisions])) if revisions else 0.0,
    'changed': float(np.mean(changed)) if changed else 0.0,
  }


def said_by(role: str, content: str | None) -> Message:
  return {'role': role, 'content': content}
