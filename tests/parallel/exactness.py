"""Small real runs, whose losses no layout may change."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

import jax
import numpy as np

from bigdl.data.base import Source
from bigdl.data.glyphs import Glyphs
from bigdl.data.masked import Masked
from bigdl.data.pairs import Pairs
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.synthetic import Markov
from bigdl.experiment import Experiment
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.models.vit import ViT
from bigdl.objectives.base import Objective, State
from bigdl.objectives.causal_lm import CausalLM
from bigdl.objectives.classify import Classify
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.train.program import Program

SAME_LOSS = 1e-5  # Relative, in float32.
STEPS, ROWS = 20, 8
ALONE = Layout(data=1)

_SIZE: dict[str, Any] = {'depth': 4, 'width': 32, 'heads': 4, 'stack': 'scan'}


@functools.cache
def _parts(name: str) -> tuple[Any, Objective, Source]:
  """Returns model, objective and data of one family."""
  if name == 'gpt':
    model = GPT(vocab=64, length=16, **_SIZE)
    return model, CausalLM(), Markov(vocab=64, length=16)
  if name == 'bert':
    data = Masked(Pairs(StandardLibrary(length=16)))
    bert = BERT(vocab=data.facts()['vocab'], length=16, **_SIZE)
    return bert, MaskedLM(), data
  # Sixteen patches, and no class token: an axis can split them.
  vit = ViT(
    patch=4, image_size=16, channels=1, classes=10, pool='mean', **_SIZE
  )
  return vit, Classify(), Glyphs()


def experiment(name: str, layout: Layout, **changes) -> Experiment:
  """Returns a run of GPT, BERT or ViT; `model` may hold fields to change."""
  model, objective, data = _parts(name)
  fields = {
    'model': model.clone(**changes.pop('model', {})),
    'objective': objective,
    'data': data,
    'optimizer': AdamW(lr=3e-3),
    'steps': STEPS,
    'batch': ROWS,
    'layout': layout,
  }
  return Experiment(**{**fields, **changes})


@contextlib.contextmanager
def quick_compiles() -> Iterator[None]:
  """Spares the last optimisations, which take longer than these runs gain."""
  name = 'jax_disable_most_optimizations'
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, False)


@functools.cache
def first_state(name: str) -> State:
  """Returns the state, on the host, that the runs of a family start from."""
  e = experiment(name, ALONE)
  plan = Program(e, ALONE.mesh())
  with quick_compiles():
    return jax.device_get(plan.init(plan.state_shapes()))


def losses(name: str, layout: Layout, **changes) -> np.ndarray:
  """Returns the loss of each update of a run under that layout."""
  e = experiment(name, layout, **changes)
  e.check()
  plan = Program(e, layout.mesh())
  shapes = plan.state_shapes()
  with quick_compiles():
    update, names = plan.update(shapes)
  if changes:
    state = plan.init(shapes)
  else:
    # A copy: updates take the memory of the state before them.
    at = jax.tree.map(lambda s: s.sharding, shapes)
    state = jax.device_put(jax.tree.map(np.copy, first_state(name)), at)
  batch, key = plan.batches(), plan.key()
  found = []
  for step in range(e.steps):
    state, metrics = update(state, batch(step), key)
    found.append(np.asarray(metrics))
  return np.asarray(found)[:, names.index('loss')]


@functools.cache
def alone(name: str) -> np.ndarray:
  """Returns the losses of that run on one device."""
  return losses(name, ALONE)


def check(name: str, layout: Layout) -> None:
  """Fails where a layout changes the losses of a run."""
  found, want = losses(name, layout), alone(name)
  # A run that stood still would agree with anything that stands still.
  assert want[-1] < want[0]
  np.testing.assert_allclose(found, want, rtol=SAME_LOSS)
