"""The flags that say what the columns of someone's CSV are, for three verbs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from bigdl.scaling import csv_units

_COLUMNS = ('n', 'd', 'loss', 'c', 'budget', 'name', 'loss_se')


@dataclasses.dataclass(frozen=True)
class Columns:
  """Columns of a CSV of runs, and what their numbers are counted in."""

  n: str = ''  # CSV: column of parameters; '' is the one called n.
  d: str = ''  # CSV: column of tokens (or other units of data).
  loss: str = ''  # CSV: column of the final loss; sweep: or error, …
  c: str = ''  # CSV: column of FLOPs; without one, C = 6 N D.
  budget: str = ''  # CSV: column that groups runs of equal compute.
  name: str = ''  # CSV: column of the runs' names.
  loss_se: str = ''  # CSV: column of the loss's standard error.
  n_unit: float = 0.0  # CSV: what N is counted in, such as 1e6.
  d_unit: float = 0.0  # CSV: what D is counted in, such as 1e9.
  c_unit: float = 0.0  # CSV: what C is counted in, 8.64e19 for PF-days.
  loss_unit: str = ''  # CSV: nats, bits or perplexity, each per token.

  def columns(self, *more: str) -> dict[str, str]:
    """Returns which column of the CSV is which of ours, of those named."""
    return {
      {'c': 'flops'}.get(k, k): getattr(self, k)
      for k in (*_COLUMNS, *more)
      if getattr(self, k)
    }

  def units(self) -> csv_units.Units:
    """Returns what the numbers are counted in, as far as it is said."""
    from bigdl.scaling import csv_units

    return csv_units.Units(
      self.n_unit, self.d_unit, self.c_unit, self.loss_unit
    )
