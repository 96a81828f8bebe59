"""Trains a toy run, to be killed; run by `remote_test.py`.

usage: remote_run.py FOLDER

Prints each step that it logs.
"""

from __future__ import annotations

import os
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'

import toy_experiment as toy

from bigdl.parallel.layout import Layout
from bigdl.train import run


class Slow(toy.Points):
  """Takes long enough over a batch that saves are whole before the kill."""

  def batch(self, step, **kwargs):
    time.sleep(0.1)
    return super().batch(step, **kwargs)


if __name__ == '__main__':
  e = toy.experiment(layout=Layout(1), data=Slow())
  whole = toy.experiment(layout=Layout(1))
  record = run.run(
    e,
    sys.argv[1],
    config=toy.config(whole),
    on_progress=lambda news: print(news['step'], flush=True),
  )
  assert record['status'] == 'finished', record
