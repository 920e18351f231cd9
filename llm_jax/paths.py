"""Names for the leaves of a pytree: `blocks/block_0/attention/query/w`, and rules over them."""
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

T = TypeVar('T')


def name(path: tuple[Any, ...]) -> str:
  """Joins a jax key path into `a/b/c`."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf) in the tree's own order."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    yield name(path), leaf


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """Applies `function(name, leaf)` to every leaf."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(name(path), leaf), tree)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """{'a': {'b': x}} to {'a/b': x}. What is no dict stays whole, such as a quantised weight of several arrays."""
  found: dict[str, Any] = {}
  for key, node in tree.items():
    if isinstance(node, Mapping):
      found |= {f'{key}/{name}': leaf for name, leaf in flat(node).items()}
    else:
      found[key] = node
  return found


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b': x} to {'a': {'b': x}}."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def first_match(rules: tuple[tuple[str, T], ...], path: str) -> T | None:
  """The value of the first rule whose regular expression is found in `path`, else None."""
  return next((value for pattern, value in rules if re.search(pattern, path)), None)
