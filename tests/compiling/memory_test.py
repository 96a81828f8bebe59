"""The compiler's report of memory."""

from bigdl.compiling import memory

REPORT = """Memory Space: default (color=0)
Total bytes: 14385664 (13.72MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
       512B(  0%);       512B;      3670016;                1; (f32[8,128])
     4.0MiB( 60%);     3.5MiB;            0;                2; (f32[4,256,256], bf16[8,128,64], f32[4,256,256])
     4.5MiB(100%);     1.5KiB;       131072;                2; 2×f32[4,64]

Memory Space: vmem (color=1)
Total bytes: 80 (80B)
  ------------------------------------------------------------
     9.0GiB(100%);     9.0GiB;            0;                1; (s32[7])
"""


def test_memory_spaces_are_told_apart():
  assert memory.spaces(REPORT) == {'default': 14385664, 'vmem': 80}


def test_the_largest_buffers_of_main_memory_come_first():
  first, second = memory.largest(REPORT, 2)
  assert first.bytes == round(3.5 * 2**20)
  assert first.shapes == ('f32[4,256,256]', 'bf16[8,128,64]')
  assert (second.bytes, second.shapes) == (1536, ('f32[4,64]',))


def test_another_text_has_no_memory():
  assert memory.spaces('nothing') == {}
  assert memory.largest('nothing') == []
