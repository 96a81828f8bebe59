"""Models around a model, which look like it from outside."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn


class Wrapper(nn.Module):
  """Has the fields of its `body` for its own, to read and to `clone` with.

  A field of the same name goes before the body's.
  """

  body: nn.Module

  def __getattr__(self, name: str) -> Any:
    # Only what is not found otherwise comes here.
    if name in ('body', 'remat') or name not in self._inner:
      return super().__getattr__(name)
    return getattr(self.body, name)

  @property
  def _inner(self) -> set[str]:
    """The fields of all bodies inside."""
    body = self.body
    names = {f.name for f in dataclasses.fields(body)} - {'parent', 'name'}
    return names | body._inner if isinstance(body, Wrapper) else names

  @property
  def innermost(self) -> nn.Module:
    """The model that all wrappers are around."""
    body = self.body
    return body.innermost if isinstance(body, Wrapper) else body

  def clone(self, **updates: Any) -> Any:
    """Returns a copy with fields of its own, or of its body, changed."""
    own = {f.name for f in dataclasses.fields(self)}
    # flax hands itself options that begin with an underscore.
    inner = {k for k in updates if k not in own and k[0] != '_'}
    if inner:
      body = updates.get('body', self.body)
      changed = body.clone(**{k: updates.pop(k) for k in inner})
      updates['body'] = changed
    return super().clone(**updates)

  def scale(self, factor: float) -> Any:
    """Returns the same around a body of `factor` times the parameters."""
    return self.clone(body=self.body.scale(factor))


class Outermost(Wrapper):
  """Changes the parameters or the inputs of its body from outside.

  A subclass defines `init` and `apply`. It stands outside of other wrappers; its
  body's methods are its own, and reached through `apply` alone.
  """

  def __getattr__(self, name: str) -> Any:
    # flax looks for its own names on the way to being initialised.
    if name[0] == '_' or name in ('body', 'remat', 'scope', 'parent', 'name'):
      return super().__getattr__(name)
    if getattr(self, 'scope', None) is not None:
      self()
    return getattr(self.body, name)

  def init_with_output(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what the model returns, and its variables."""
    variables = self.init(rngs, *args, **kwargs)
    return self.apply(variables, *args, rngs=rngs, **kwargs), variables

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    raise ValueError(
      f'{type(self).__name__} must be the outermost model, used by apply()'
    )
