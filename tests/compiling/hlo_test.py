"""What is read from the text of compiled programs, against counts by hand."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from bigdl.compiling import hlo, operations

HERE = pathlib.Path(__file__).parent
# Those of make_texts.py.
LAYERS, ROWS, WIDTH, DEVICES = 3, 128, 1024, 8
# A product forward and one for each gradient; remat recomputes the forward,
# but for the last product, whose result no gradient needs.
PRODUCT = 2 * ROWS * WIDTH * WIDTH


@functools.cache
def read(name):
  return hlo.parse((HERE / name).read_text())


def compiled(function, *shapes):
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return hlo.parse(jax.jit(function).lower(*arrays).compile().as_text())


def test_a_loop_of_the_tpu_compiler_counts_as_often_as_it_runs():
  module = read('tpu.txt')
  loops = [
    module.trips(computation, each)
    for computation in module.computations.values()
    for each in computation
    if each.opcode == 'while'
  ]
  assert loops == [LAYERS, LAYERS]
  assert module.unresolved == ()


def test_products_of_a_tpu_program_are_those_of_the_mathematics():
  # Forward, and for each layer: again, by the weights and by the input; the
  # compiler leaves out the gradient of the first input if it can.
  work = operations.flops(read('tpu.txt')) * DEVICES
  assert work / PRODUCT in (4 * LAYERS, 4 * LAYERS - 1)


def test_a_peeled_or_copied_loop_counts_as_often():
  work = operations.flops(read('two_slices.txt')) * 2 * DEVICES
  assert work / PRODUCT in (4 * LAYERS, 4 * LAYERS - 1)


def test_nested_loops_multiply():
  def nest(x, w):
    def outer(x, _):
      return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x @ w), x), None

    return jax.lax.scan(outer, x, length=7)[0]

  module = compiled(nest, (4, 8), (8, 8))
  assert operations.flops(module) == 7 * 5 * 2 * 4 * 8 * 8


def test_a_loop_that_data_ends_counts_once_and_is_named():
  def search(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

  module = compiled(search, (4, 8), (8, 8))
  assert len(module.unresolved) == 1
  assert operations.flops(module) == 2 * 4 * 8 * 8


@pytest.mark.parametrize(
  ('direction', 'bound', 'start', 'step', 'rounds'),
  [
    ('LT', 10, 0, 3, 4),
    ('LE', 9, 0, 3, 4),
    ('NE', 12, 0, 3, 4),
    ('GT', 0, 10, -3, 4),
    ('GE', 1, 10, -3, 4),
    ('LT', 0, 5, 1, 0),
    ('LT', 10, 0, -1, None),
    ('NE', 10, 0, 3, None),
  ],
)
def test_rounds_follow_from_start_step_and_bound(
  direction, bound, start, step, rounds
):
  module = hlo.parse(_LOOP.format(**locals()))
  entry = module.computations[module.entry]
  assert module.trips(entry, entry.instructions['loop']) == rounds


_LOOP = """HloModule jit_step, is_scheduled=true

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{{0}} get-tuple-element(%state), index=1
  %one = s32[] constant({step})
  %next = s32[] add(%i, %one)
  ROOT %both = (s32[], f32[8]{{0}}) tuple(%next, %x)
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  %state.1 = (s32[], f32[8]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %most = s32[] constant({bound})
  ROOT %more = pred[] compare(%j, %most), direction={direction}
}}

ENTRY %main (x.1: f32[8]) -> (s32[], f32[8]) {{
  %x.1 = f32[8]{{0}} parameter(0)
  %zero = s32[] constant({start})
  %first = (s32[], f32[8]{{0}}) tuple(%zero, %x.1)
  ROOT %loop = (s32[], f32[8]{{0}}) while(%first), condition=%condition, body=%body
}}
"""


def test_a_call_with_text_of_several_lines_does_not_end_its_computation():
  text = _LOOP.format(direction='LT', bound=1, start=0, step=1).replace(
    '  ROOT %loop',
    '  %k = f32[8]{0} custom-call(%x.1), custom_call_target="tpu_custom_call",'
    ' kernel_metadata={\n{"a": 1\n}}\n}\n  ROOT %loop',
  )
  module = hlo.parse(text)
  assert list(module.computations['main'].instructions) == [
    'x.1',
    'zero',
    'first',
    'k',
    'loop',
  ]
  assert len(operations.kernels(module)) == 1


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='has no ENTRY computation'):
    hlo.parse('HloModule empty\n')


@pytest.mark.parametrize(
  ('text', 'bytes_'),
  [
    ('f32[2,3]{1,0}', 24),
    ('bf16[5]{0:T(256)(2,1)}', 10),
    ('pred[7]{0}', 7),
    ('s4[3]{0}', 2),
    ('f8e4m3fn[4]', 4),
    ('c64[2]', 16),
    ('(f32[2]{0}, (bf16[4]{0:T(8,128)S(1)}, u32[]{:S(2)}))', 20),
  ],
)
def test_bytes_of_a_result(text, bytes_):
  line = _LOOP.format(direction='LT', bound=1, start=0, step=1).replace(
    '  ROOT %loop', f'  %y = {text} custom-call(%x.1)\n  ROOT %loop'
  )
  assert hlo.parse(line).computations['main'].instructions['y'].bytes == bytes_


def test_only_the_inside_of_a_padded_convolution_counts():
  # A batch of 8 products as the compiler of TPUs writes it: at each place of
  # the result one of the 8 places of the window lies inside the input.
  text = """HloModule m

ENTRY %main (a: bf16[8,16,32], b: bf16[8,32,64]) -> bf16[8,16,64] {
  %a = bf16[8,16,32]{2,1,0} parameter(0)
  %b = bf16[8,32,64]{2,1,0} parameter(1)
  ROOT %c = bf16[8,16,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
  module = hlo.parse(text)
  assert operations.flops(module) == 8 * 2 * 16 * 32 * 64


def test_cycles_are_counted_once_a_round_and_only_after_code_generation():
  assert operations.cycles(read('two_slices.txt')) is None
  module = read('tpu.txt')
  once = sum(
    each.cycles or 0
    for name in module.executions
    if name not in operations.fused(module)
    for each in module.computations[name]
  )
  assert once < operations.cycles(module) < LAYERS * once


def test_a_sliced_operand_moves_its_slice_and_an_updated_one_its_update():
  def rows(x_LN, y_N, i):
    return jax.lax.dynamic_update_index_in_dim(x_LN, y_N, i, 0), x_LN[i]

  # XLA copies the input first, as it is not donated: 2 x 64 rows.
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 1024), (1024,))]
  arrays.append(jax.ShapeDtypeStruct((), jnp.int32))
  text = jax.jit(rows, donate_argnums=0).lower(*arrays).compile().as_text()
  module = hlo.parse(text)
  entry = module.computations[module.entry]
  moved = sum(operations.moved(module, entry, each) for each in entry)
  copies = sum(each.opcode == 'copy' for each in entry)
  assert moved - copies * 2 * 64 * 4096 < 10 * 4096


def test_a_fusion_in_a_fusion_moves_what_the_inner_one_reads():
  text = """HloModule m, is_scheduled=true

%inner (p: f32[64,1024], i: s32[]) -> f32[1,1024] {
  %p = f32[64,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,1024]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,1024}
}

%outer (q: f32[64,1024], j: s32[]) -> f32[1,1024] {
  %q = f32[64,1024]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %one = f32[1,1024]{1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,1024]{1,0} add(%one, %one)
}

ENTRY %main (x: f32[64,1024], k: s32[]) -> f32[1,1024] {
  %x = f32[64,1024]{1,0} parameter(0)
  %k = s32[] parameter(1)
  ROOT %y = f32[1,1024]{1,0:S(1)} fusion(%x, %k), kind=kLoop, calls=%outer
}
"""
  module = hlo.parse(text)
  entry = module.computations['main']
  # The row and its number are read; the result stays on the chip.
  assert operations.moved(module, entry, entry.root) == 4096 + 4


def test_a_kernel_of_attention_has_the_flops_of_its_two_products():
  (kernel,) = operations.kernels(read('pallas.txt'))
  # 2 rows a device, 2 heads, 256 x 256 scores of 128, half of them hidden.
  assert operations.kernel_flops(kernel) == 2 * 2 * 2 * 2 * 256 * 256 * 128 / 2
