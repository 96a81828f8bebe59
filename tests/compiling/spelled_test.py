"""Elements of tuples as XLA of jax 0.11 prints them: among the operands."""

from __future__ import annotations

from bigdl.compiling import hlo, instructions

# A loop of twelve rounds; the counter is the first of what it carries, and the
# matrix the second of a tuple in it.
TEXT = """HloModule loop, num_partitions=1

%condition (state.1: (s32[], (f32[4], f32[4,4]))) -> pred[] {
  %most = s32[] constant(12)
  %state.1 = (s32[], (f32[4], f32[4,4])) parameter(0)
  ROOT %less = pred[] compare(%state.1#0, %most), direction=LT
}

%body (state.2: (s32[], (f32[4], f32[4,4]))) -> (s32[], (f32[4], f32[4,4])) {
  %state.2 = (s32[], /*index=1*/(f32[4]{0}, f32[4,4]{1,0:T(8,128)})) parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%state.2#0, %one)
  %product = f32[4,4]{1,0} dot(%state.2#1#1, %state.2#1#1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %pair = (f32[4]{0}, f32[4,4]{1,0}) tuple(%state.2#1#0, %product)
  ROOT %both = (s32[], (f32[4]{0}, f32[4,4]{1,0})) tuple(%next, %pair)
}

ENTRY %main (x: (f32[4], f32[4,4])) -> f32[4,4] {
  %x = (f32[4]{0}, f32[4,4]{1,0}) parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], (f32[4]{0}, f32[4,4]{1,0})) tuple(%zero, %x)
  %loop = (s32[], (f32[4]{0}, f32[4,4]{1,0})) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4,4]{1,0} copy(%loop#1#1)
}
"""


def test_a_loop_whose_counter_is_an_element_is_counted():
  module = hlo.parse(TEXT)
  assert module.unresolved == ()
  assert module.executions['body'] == 12


def test_an_element_has_the_shape_that_it_has_in_its_tuple():
  body = hlo.parse(TEXT).computations['body']
  product = body.instructions['product']
  (operand,) = body.operand(product, 0).arrays
  assert operand.dims == (4, 4)
  assert body.operand(product, 0).opcode == 'get-tuple-element'


def test_lines_without_such_elements_are_left_as_they_are():
  lines = ['  %a = f32[] constant(1)', '  ROOT %b = f32[] negate(%a)']
  assert instructions.spelled(lines) == lines
