"""What holds for every source; each check is given the `tiny` of its file."""

from __future__ import annotations

from collections.abc import Callable
import concurrent.futures
import dataclasses
import json
import math
from unittest import mock

import numpy as np

from bigdl import config
from bigdl.data.base import Source

Tiny = Callable[[], Source]

SIZE = 8  # Rows of a global batch.


def same(a: dict, b: dict) -> bool:
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def differs(a: dict, b: dict) -> bool:
  return any(not np.array_equal(a[k], b[k]) for k in a.keys() & b.keys())


def check_a_batch_is_a_function_of_its_step(tiny: Tiny) -> None:
  source = tiny()
  backward = {k: source.batch(k, size=SIZE) for k in (3, 2, 1, 0)}
  fresh = tiny()
  for step in range(4):
    assert same(fresh.batch(step, size=SIZE), backward[step])
    assert same(source.batch(step, size=SIZE), backward[step])
  assert differs(backward[0], backward[1]), 'every step has the same batch'


def check_threads_read_the_same_batches(tiny: Tiny) -> None:
  source = tiny()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = pool.map(lambda k: source.batch(k % 4, size=SIZE), range(16))
    for step, batch in enumerate(found):
      assert same(batch, tiny().batch(step % 4, size=SIZE))


def check_hosts_share_the_global_batch(tiny: Tiny) -> None:
  source = tiny()
  for shards in (2, 4, 8):
    parts = [
      source.batch(1, size=SIZE, shard=i, shards=shards) for i in range(shards)
    ]
    assert all(len(x) == SIZE // shards for p in parts for x in p.values())
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    assert same(joined, source.batch(1, size=SIZE))


def check_hosts_read_their_own_rows_alone(tiny: Tiny) -> None:
  source, spans = tiny(), []
  rows = type(source).rows

  def spy(self, start, stop):
    spans.append((start, stop))
    return rows(self, start, stop)

  with mock.patch.object(type(source), 'rows', spy):
    for shard in range(4):
      source.batch(2, size=SIZE, shard=shard, shards=4)
  read = [i for start, stop in spans for i in range(start, stop)]
  assert read == list(range(2 * SIZE, 3 * SIZE)), spans


def check_spec_is_that_of_the_rows(tiny: Tiny) -> None:
  source = tiny()
  spec, last = source.spec(), len(source) - 1
  assert spec
  # Across the end of the first epoch, too.
  for start, stop in ((0, 3), (last, last + 3)):
    rows = source.rows(start, stop)
    assert rows.keys() == spec.keys()
    for name, x in rows.items():
      assert isinstance(x, np.ndarray), name
      assert x.shape == (stop - start, *spec[name].shape), name
      assert x.dtype == spec[name].dtype, name
      assert np.isfinite(x).all(), name


def check_rows_are_the_ones_of_the_dataset(tiny: Tiny) -> None:
  source = tiny()
  one_by_one = [source.rows(i, i + 1) for i in range(3)]
  rows = source.rows(0, 3)
  data = source.dataset()
  assert len(data) == len(source)
  for i, row in enumerate(one_by_one):
    assert same(row, {k: x[i : i + 1] for k, x in rows.items()})
    assert same(data[i], {k: x[i] for k, x in rows.items()})


def check_an_epoch_does_not_repeat_the_order_of_training_rows(
  tiny: Tiny,
) -> None:
  """Where the source is one of training; validation keeps one order."""
  source = tiny()
  size = len(source)
  rows = min(size, 64)
  first, second = source.rows(0, rows), source.rows(size, size + rows)
  if getattr(source, 'split', 'train') == 'train':
    assert size == 1 or differs(first, second)
  else:
    assert same(first, second)


def check_facts_are_true_of_the_rows(tiny: Tiny) -> None:
  source = tiny()
  facts, rows = source.facts(), source.rows(0, min(len(source), 32))
  json.dumps(facts)
  for name, most in (('tokens', 'vocab'), ('label', 'classes')):
    if name in rows:
      assert 0 <= rows[name].min() <= rows[name].max() < facts[most]
  if 'bytes_per_token' in facts:
    assert 0 < facts['bytes_per_token'] < math.inf
  if 'entropy' in facts:
    assert 0 <= facts['entropy'] <= math.log(facts['vocab'])
  if 'segments' in rows:
    assert rows['segments'].shape == rows['tokens'].shape
    assert rows['segments'].min() >= 0


def check_fingerprint_is_of_the_content(tiny: Tiny) -> None:
  source = tiny()
  found = source.fingerprint()
  assert (
    isinstance(found, str) and 4 <= len(found) <= 80 and found.isprintable()
  )
  assert tiny().fingerprint() == found == source.fingerprint()
  names = {f.name for f in dataclasses.fields(source)}
  if 'split' in names:
    other = 'validation' if source.split == 'train' else 'train'
    held_out = dataclasses.replace(source, split=other)
    assert held_out.fingerprint() != found
    assert differs(held_out.batch(0, size=SIZE), source.batch(0, size=SIZE))


def check_seed_moves_the_rows(tiny: Tiny) -> None:
  """Where the source has the field `seed`."""
  source = tiny()
  if 'seed' not in {f.name for f in dataclasses.fields(source)}:
    return
  other = dataclasses.replace(source, seed=source.seed + 1)
  assert differs(other.batch(0, size=SIZE), source.batch(0, size=SIZE))


def check_record_rebuilds_the_source(tiny: Tiny) -> None:
  source = tiny()
  text = json.dumps(config.to_json(source))
  again = config.from_json(json.loads(text))
  assert again == source == tiny()
  assert hash(again) == hash(source)
  assert same(again.batch(1, size=SIZE), source.batch(1, size=SIZE))


CHECKS = [f for name, f in list(globals().items()) if name.startswith('check_')]
