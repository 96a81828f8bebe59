"""Peaks by device kind, and the one that is measured."""

from __future__ import annotations

import json

import pytest

from bigdl.scaling import peak


@pytest.mark.parametrize(
  ('kind', 'platform', 'dtype', 'teraflops'),
  [
    ('NVIDIA H100 80GB HBM3', 'gpu', 'bfloat16', 989.4),
    ('NVIDIA H100 80GB HBM3', 'gpu', 'float32', 494.7),
    ('NVIDIA H100 PCIe', 'gpu', 'bfloat16', 756),
    ('NVIDIA H100 NVL', 'gpu', 'bfloat16', 835),
    ('NVIDIA H200', 'gpu', 'bfloat16', 989.4),
    ('NVIDIA GH200 480GB', 'gpu', 'bfloat16', 989.4),
    ('NVIDIA A100-SXM4-80GB', 'gpu', 'bfloat16', 312),
    ('NVIDIA A100-SXM4-80GB', 'gpu', 'float32', 156),
    ('NVIDIA A10G', 'gpu', 'bfloat16', 70),
    ('NVIDIA A10', 'gpu', 'bfloat16', 125),
    ('Tesla V100-SXM2-16GB', 'gpu', 'float16', 125),
    ('Tesla V100-PCIE-16GB', 'gpu', 'float16', 112),
    ('Tesla T4', 'gpu', 'float32', 8.1),
    ('NVIDIA L4', 'gpu', 'bfloat16', 121),
    ('NVIDIA L40S', 'gpu', 'bfloat16', 362),
    ('NVIDIA GeForce RTX 4090', 'gpu', 'bfloat16', 165.2),
    ('NVIDIA B200', 'gpu', 'bfloat16', 2250),
    ('NVIDIA GB200', 'gpu', 'bfloat16', 2500),
    ('TPU v2', 'tpu', 'bfloat16', 22.5),
    ('TPU v3', 'tpu', 'bfloat16', 61.5),
    ('TPU v4', 'tpu', 'bfloat16', 275),
    ('TPU v5 lite', 'tpu', 'bfloat16', 197),
    ('TPU v5e', 'tpu', 'bfloat16', 197),
    ('TPU v5', 'tpu', 'bfloat16', 459),
    ('TPU v5p', 'tpu', 'float32', 459),
    ('TPU v6 lite', 'tpu', 'bfloat16', 918),
    ('TPU v6e', 'tpu', 'bfloat16', 918),
    ('TPU7x', 'tpu', 'bfloat16', 1153.5),
  ],
)
def test_device_kinds_find_their_datasheet(kind, platform, dtype, teraflops):
  found = peak.peak_flops(kind, platform, dtype)
  assert found.flops == pytest.approx(teraflops * 1e12)
  assert 'datasheet' in found.note


def test_devices_add_up():
  one = peak.peak_flops('TPU v4', 'tpu').flops
  assert peak.peak_flops('TPU v4', 'tpu', devices=8).flops == 8 * one


@pytest.mark.parametrize(
  ('kind', 'platform', 'dtype'),
  [
    ('NVIDIA X999', 'gpu', 'bfloat16'),
    ('TPU v99', 'tpu', 'bfloat16'),
    ('NVIDIA A1000', 'gpu', 'bfloat16'),
    # Volta has no bfloat16 products.
    ('Tesla V100-SXM2-16GB', 'gpu', 'bfloat16'),
    ('NVIDIA H100 80GB HBM3', 'gpu', 'int3'),
  ],
)
def test_what_is_unknown_is_none_with_a_line_and_no_guess(
  kind, platform, dtype
):
  found = peak.peak_flops(kind, platform, dtype)
  assert found.flops is None
  assert '\n' not in found.note
  assert kind in found.note
  assert dtype in found.note


@pytest.fixture
def stopwatch(monkeypatch):
  calls = []

  def measure(dtype):
    calls.append(dtype)
    return 1e11 + len(calls)

  monkeypatch.setattr(peak, '_measure', measure)
  peak._measured.cache_clear()
  yield calls
  peak._measured.cache_clear()


def test_a_cpu_is_measured_once_a_process_and_dtype(tmp_path, stopwatch):
  cache = tmp_path / 'deep' / 'peak.json'
  first = peak.peak_flops('cpu', 'cpu', 'float32', cache=cache)
  again = peak.peak_flops('cpu', 'cpu', 'float32', devices=8, cache=cache)
  assert first == again
  assert 'measured' in first.note
  assert stopwatch == ['float32']
  peak.peak_flops('cpu', 'cpu', 'bfloat16', cache=cache)
  assert stopwatch == ['float32', 'bfloat16']
  assert len(json.loads(cache.read_text())) == 2


def test_another_number_of_threads_is_another_machine(
  tmp_path, stopwatch, monkeypatch
):
  cache = tmp_path / 'peak.json'
  peak.peak_flops('cpu', 'cpu', 'float32', cache=cache)
  monkeypatch.setattr(peak, '_threads', lambda: 777)
  peak.peak_flops('cpu', 'cpu', 'float32', cache=cache)
  assert len(stopwatch) == 2


def test_the_best_that_any_process_measured_counts(tmp_path, monkeypatch):
  cache = tmp_path / 'peak.json'
  # The machine was busy in the first and in the third.
  for found, known in [(1e11, 1e11), (3e11, 3e11), (2e11, 3e11)]:
    monkeypatch.setattr(peak, '_measured', lambda *_, found=found: found)
    assert peak.peak_flops('cpu', 'cpu', 'float32', cache=cache).flops == known
    assert list(json.loads(cache.read_text()).values()) == [known]


@pytest.mark.parametrize('text', ['', '{"a": ', '[1]', '{"a": "b"}'])
def test_a_broken_cache_is_measured_anew(tmp_path, stopwatch, text):
  cache = tmp_path / 'peak.json'
  cache.write_text(text)
  found = peak.peak_flops('cpu', 'cpu', 'float32', cache=cache)
  assert list(json.loads(cache.read_text()).values()) == [found.flops]


def test_a_cache_that_cannot_be_written_is_only_a_note(tmp_path, stopwatch):
  (tmp_path / 'file').write_text('')
  cache = tmp_path / 'file' / 'peak.json'
  found = peak.peak_flops('cpu', 'cpu', 'float32', cache=cache)
  assert found.flops == 1e11 + 1
  assert 'not kept' in found.note


def test_the_measurement_is_of_this_machine():
  found = peak.peak_flops('cpu', 'cpu', 'float32', cache=None)
  # From a slow single core to the largest server there is.
  assert 1e9 < found.flops < 1e14
