"""Where batches come from: random access, pure in the step."""

from __future__ import annotations

import dataclasses
import functools

import grain.python as grain
import jax
import numpy as np

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """Rows addressed by number, so that a batch is a pure function of the step.

  A subclass defines `dataset` (and `facts`, `fingerprint`); everything else
  follows. Nothing is read before the first of them is called, so that an
  experiment can name data that lies on another machine.
  """

  def dataset(self) -> grain.MapDataset:
    """Returns the rows in training order: `ds[i]` is a `Row`.

    `len(ds)` is the number of rows in one epoch. A training source shuffles
    afresh each epoch; `rows` below asks for indices beyond the first epoch.
    """
    raise NotImplementedError

  def facts(self) -> dict:
    """Returns what is known of the data, such as `{'vocab': 256}`.

    Keys in use: `vocab` (int), `classes` (int), `bytes_per_token` (float, for
    bits per byte), `entropy` (float, nats per token, where it is known).
    """
    return {}

  def fingerprint(self) -> str:
    """Returns a short hash of the content, recorded with every run."""
    raise NotImplementedError

  @functools.cached_property
  def _rows(self) -> grain.MapDataset:
    return self.dataset()

  def __len__(self) -> int:
    return len(self._rows)

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of one row, by field (no batch dimension)."""
    row = self._rows[0]
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in row.items()}

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    """Returns rows `start` to `stop` stacked: `[stop - start, ...]` a field.

    Indices run on through the epochs: row `len(self)` opens the second.
    """
    rows = [self._rows[i] for i in range(start, stop)]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

  def batch(
    self, step: int, *, size: int, shard: int = 0, shards: int = 1
  ) -> dict[str, np.ndarray]:
    """Returns this host's rows of global batch `step`.

    Args:
      step: The update the batch is for, from 0.
      size: Rows in the global batch.
      shard: This host's position among `shards` hosts, which `size` must be
        divisible by; each takes a contiguous block of the batch.
      shards: How many hosts share the batch.
    """
    if size % shards:
      raise ValueError(f'batch={size} must be divisible by hosts={shards}')
    own = size // shards
    start = step * size + shard * own
    return self.rows(start, start + own)
