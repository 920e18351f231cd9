"""Names of the Hugging Face hub in a configuration: parts with a `revision` may name something there.

A run pins them: `revision` becomes the commit that the run began with, so that it reads the same however often it is
resumed.
"""
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_jax.config.type_hints import is_sequence

REPOSITORY = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')


@dataclasses.dataclass(frozen=True)
class HubName:
  """Something on the hub.

  kind: 'model' or 'dataset'.
  name: such as `Qwen/Qwen3-0.6B`.
  revision: a branch, a tag or a commit; None: the newest commit.
  """
  kind: str
  name: str
  revision: str | None = None


def is_hub_name(text: str) -> bool:
  """Whether it names something on the hub: it is no path that exists, and looks like OWNER/NAME."""
  return not os.path.exists(text) and REPOSITORY.fullmatch(text) is not None


def hub_names(config: Any) -> Iterator[HubName]:
  """Those in a configuration, each once."""
  yield from dict.fromkeys(_all_names(config))


def _all_names(value: Any) -> Iterator[HubName]:
  if is_sequence(value):
    for item in value:
      yield from _all_names(item)
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    name = getattr(value, 'hub_name', None)
    if name is not None:
      yield name
    for field in dataclasses.fields(value):
      yield from _all_names(getattr(value, field.name))


def pinned(config: Any, commits: Mapping[HubName, str]) -> Any:
  """The same configuration, in which every part that names something on the hub has a commit as its `revision`."""
  if is_sequence(config):
    return tuple(pinned(item, commits) for item in config)
  if not dataclasses.is_dataclass(config) or isinstance(config, type):
    return config
  changes: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    before = getattr(config, field.name)
    after = pinned(before, commits)
    if after != before:
      changes[field.name] = after
  name = getattr(config, 'hub_name', None)
  if name is not None:
    changes['revision'] = commits[name]
  return dataclasses.replace(config, **changes) if changes else config
