"""Torch classes that compute in float32 whatever their weights, in float64.

LLaMA, Mistral and Cohere norm and rotate in float32 even where their weights are
float64, and so cannot check anything to more digits than that.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from unittest import mock

import torch


@contextlib.contextmanager
def wide() -> Iterator[None]:
  """Makes torch's conversions to float32 conversions to float64."""
  to = torch.Tensor.to

  def double(value):
    return torch.float64 if value is torch.float32 else value

  def convert(self, *args, **kinds):
    kinds = {k: double(v) for k, v in kinds.items()}
    return to(self, *map(double, args), **kinds)

  def widened(function):
    return lambda *args, **kinds: function(
      *args, **{k: double(v) for k, v in kinds.items()}
    )

  softmax = torch.nn.functional.softmax
  with (
    mock.patch.object(torch.Tensor, 'to', convert),
    mock.patch.object(torch.Tensor, 'float', torch.Tensor.double),
    mock.patch.object(torch.nn.functional, 'softmax', widened(softmax)),
    mock.patch.object(torch, 'arange', widened(torch.arange)),
  ):
    yield
