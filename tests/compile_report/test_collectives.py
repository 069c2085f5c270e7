"""Exchanges: their devices, sizes and times."""

from pathlib import Path

import pytest

from pit_jax.compile_report import chips
from pit_jax.compile_report.collectives import collectives, exchange_seconds, first_group
from pit_jax.compile_report.hlo import Module


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", [0, 1]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}", list(range(8))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=([4,2]T(1,0)) {'a'}", [0, 1]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_groups_in_all_notations(groups: str, expected: list[int]) -> None:
    assert first_group(f"channel_id=1, {groups}, use_global_device_ids=true", 8) == expected


def _places(*shape: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(shape[0]) for column in range(shape[1])]


def test_an_all_reduce_over_a_torus_uses_all_rings_both_ways() -> None:
    on = chips.parse_slice("v5e:16x16")
    seconds = exchange_seconds("all-reduce", 50_700_000, _places(16, 16), on)
    # Two passes of 255/256 of the data over two axes of 45 GB/s in each direction.
    assert seconds == pytest.approx(2 * 50.7e6 * 255 / 256 / (2 * 2 * 45e9))
    gather = exchange_seconds("all-gather", 50_700_000, _places(16, 16), on)
    assert gather == pytest.approx(seconds / 2)


def test_a_short_axis_is_a_line_of_half_the_speed() -> None:
    on = chips.parse_slice("v5e:2x4")
    seconds = exchange_seconds("all-reduce", 50_700_000, _places(2, 4), on)
    assert seconds == pytest.approx(2 * 50.7e6 * 7 / 8 / (2 * 45e9))
    one_axis = exchange_seconds("reduce-scatter", 8_000_000, _places(1, 4), on)
    assert one_axis == pytest.approx(8e6 * 3 / 4 / 45e9)
    assert exchange_seconds("collective-permute", 9_000, _places(1, 2), on) == 9_000 / 45e9


def test_an_exchange_of_all_with_all_crosses_a_quarter_of_the_ring() -> None:
    on = chips.parse_slice("v5e:16x16")
    seconds = exchange_seconds("all-to-all", 1_000_000, _places(1, 16), on)
    assert seconds == pytest.approx(1e6 * 16 / 4 / 90e9)


def test_exchanges_of_a_recorded_program(data_dir: Path) -> None:
    module = Module((data_dir / "compile_report" / "step.hlo.txt").read_text())
    on = chips.parse_slice("v5e:2x2")
    (mean,) = collectives(module, 4, _places(2, 2), on)
    assert (mean.kind, mean.devices, mean.calls, mean.bytes) == ("all-reduce", 4, 1, 4)
    assert mean.seconds == pytest.approx(2 * 4 * 3 / 4 / 90e9)
    (elsewhere,) = collectives(module, 4, None, None)
    assert elsewhere.seconds is None


FUSED = """
%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %r = bf16[64,8]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = bf16[16,8]{1,0} dynamic-slice(%r, %i)
}

ENTRY %main (x: bf16[64,8], y: f32[5,2]) -> bf16[64,8] {
  %x = bf16[64,8]{1,0} parameter(0)
  %y = f32[5,2]{1,0} parameter(1)
  %f = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %g = (f32[5,2]{1,0}, f32[20,2]{1,0}) all-gather-start(%y), replica_groups={{0,1,2,3}}
  %h = f32[20,2]{1,0} all-gather-done(%g)
  %alone = f32[5,2]{1,0} all-reduce(%y), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %o = bf16[16,8]{1,0} copy(%f)
}
"""


def test_a_fused_reduce_scatter_and_an_asynchronous_gather_count_whole_arrays_once() -> None:
    scatter, gather = collectives(Module(FUSED), 4, _places(2, 2), chips.parse_slice("v5e:2x2"))
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 64 * 8 * 2)
    assert (gather.kind, gather.bytes) == ("all-gather", 20 * 2 * 4)


BESIDE = """
%begin (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %a = f32[8]{0} all-gather(%p), channel_id=3, replica_groups={{0,1},{2,3}}
}

%meanwhile (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %b = f32[8]{0} all-gather(%p), channel_id=3, replica_groups={{0,1},{2,3}}
}

ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0} parameter(0)
  %async-collective-start.1 = f32[8]{0} fusion(%x), kind=kCustom, calls=%begin
  ROOT %f = f32[8]{0} fusion(%x), kind=kOutput, calls=%meanwhile
}
"""


def test_an_exchange_that_runs_beside_others_counts_once() -> None:
    (gather,) = collectives(Module(BESIDE), 4, _places(2, 2), chips.parse_slice("v5e:2x2"))
    assert (gather.calls, gather.asynchronous, gather.bytes) == (1, 1, 32)


ON_ONE_CHANNEL = """
ENTRY %main (x: f32[4], y: bf16[100]) -> bf16[100] {
  %x = f32[4]{0} parameter(0)
  %y = bf16[100]{0} parameter(1)
  %small = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %large = bf16[100]{0} all-reduce(%y), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%b
}
"""


def test_exchanges_one_after_the_other_count_each_on_whatever_channel() -> None:
    (reduced,) = collectives(Module(ON_ONE_CHANNEL), 4, _places(2, 2), chips.parse_slice("v5e:2x2"))
    assert (reduced.calls, reduced.bytes) == (2, 216)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "expected CHIP:SHAPE such as v5e:16x16"),
        ("v5:2x2", "no chip 'v5'; did you mean 'v5[ep]'"),
        ("v5e:2x2x2", "slices of v5e have 2 positive dimensions"),
        ("v4:2x0", "slices of v4 have 3 positive dimensions"),
    ],
)
def test_what_is_no_slice_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chips.parse_slice(name)


def test_missing_dimensions_are_ones() -> None:
    assert chips.parse_slice("v4:2x2").full_name == "v4:2x2x1"
