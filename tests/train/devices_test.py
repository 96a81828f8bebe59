"""One run of a GPT that moves from one device to two, four and eight."""

from __future__ import annotations

import dataclasses

from gpt_experiment import BATCH, EXPERIMENT, ROWS, STEPS
import pytest
import toy_experiment as toy

from bigdl.parallel.layout import Layout
from bigdl.train import log, run

SAME_LOSS = 1e-6  # Relative, in float32.
# Where the run is stopped, and what it goes on with.
CHAINS = {
  'up': {1: Layout(1), 5: Layout(2), 9: Layout(4), 13: Layout(8)},
  'down': {
    1: Layout(data=1, fsdp=8),
    5: Layout(data=2, fsdp=2),
    9: Layout(data=1, fsdp=2),
    13: Layout(1),
  },
}


def train(folder, layout: Layout, *, until: int = STEPS) -> dict:
  seen = [0]
  e = dataclasses.replace(EXPERIMENT, layout=layout)
  return run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda news: seen.append(news['step']),
    stop=lambda: seen[-1] >= until,
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  assert train(folder, Layout(data=1))['status'] == 'finished'
  return log.read(folder)


@pytest.mark.parametrize('name', CHAINS)
def test_a_run_on_other_devices_sees_the_same_examples_and_losses(
  whole, tmp_path, name
):
  chain = CHAINS[name]
  starts = [*chain, STEPS + 1]
  for number, layout in enumerate(chain.values()):
    # The loop is one step ahead of what it has logged.
    record = train(tmp_path, layout, until=starts[number + 1] - 2)
    assert record['step'] == starts[number + 1] - 1
    assert record['device'].startswith(f'{layout.mesh().size}x ')
  assert record['status'] == 'finished'
  here = log.read(tmp_path)
  assert [r['step'] for r in here] == [r['step'] for r in whole]
  for one, other in zip(whole, here, strict=True):
    for key in one.keys() & {'loss', 'eval_loss'}:
      assert other[key] == pytest.approx(one[key], rel=SAME_LOSS), one['step']
    ids = [f'id{i}' for i in range(BATCH)] if 'loss' in one else []
    assert [other[i] for i in ids] == [one[i] for i in ids]


def test_every_example_is_seen_once_an_epoch(whole):
  seen = [r[f'id{i}'] for r in whole if 'loss' in r for i in range(BATCH)]
  assert sorted(seen[:ROWS]) == list(range(ROWS))
  assert seen[: STEPS * BATCH - ROWS] != seen[ROWS:]
