"""Reading kernels' schedules, on excerpts of recorded ones: all marks, the first bundles of each
run.
"""

from pathlib import Path

import pytest

from pit_jax.compile_report import kernel_schedules

# The excerpts' bundles, counted by hand: of the kernel, of the loop over its grid, of the loop over
# three heads in that one, which ends behind the branch back to its beginning. The grid is 128 x 2,
# which the two cores of a v4 share.
BUNDLES = {"v5e": (10, 33, 13), "v4": (17, 34, 11)}
ITERATIONS = {"v5e": 256, "v4": 128}
HEADS = 3


@pytest.mark.parametrize("chip", ["v5e", "v4"])
def test_loops_are_found_with_their_rounds(data_dir: Path, chip: str) -> None:
    text = (data_dir / "compile_report" / f"kernel_{chip}-final_bundles.txt").read_text()
    kernel = kernel_schedules.parse_loops(text.splitlines())
    (over_grid,) = kernel.loops
    (over_heads,) = over_grid.loops
    assert over_grid.over_grid
    assert not over_heads.over_grid
    assert (kernel.bundles, over_grid.bundles, over_heads.bundles) == BUNDLES[chip]
    assert (over_grid.rounds, over_heads.rounds) == (ITERATIONS[chip], HEADS)

    outside, per_iteration, per_head = BUNDLES[chip]
    iteration = per_iteration + HEADS * per_head
    found = kernel_schedules.parse("kernel.1", text)
    assert (found.grid, found.bundles) == (ITERATIONS[chip], iteration)
    assert found.executed == outside + ITERATIONS[chip] * iteration
    assert not found.unknown_loops


def test_a_loop_without_a_bound_counts_once_and_is_told() -> None:
    found = kernel_schedules.parse(
        "kernel", "  0x0   :  { }\n  0x1 LB: > { }\n  0x2   : > { }\n  0x3   :  { }\n"
    )
    assert (found.grid, found.executed, found.unknown_loops) == (1, 4, 1)


def test_rounds_of_an_unrolled_loop_are_fewer() -> None:
    found = kernel_schedules.parse_loops(
        [
            "  0x0   :  { }",
            "  0x1 LB: > { %s9_s1 = sadd.s32 4, %s9_s0  ;;  %s9_s0 = sphi %s1, %s9_s1 }",
            "  0x2   : > { %p1 = scmp.ge.s32.totalorder %s9_s1, 10 /* loop exit test */ }",
            "  0x3   :  {}",
        ]
    )
    assert found.loops[0].rounds == 3
    assert found.executed == 1 + 3 * 3


def test_what_is_done_in_a_loop_s_last_round_belongs_to_it() -> None:
    """Bundles marked as outside, between those of a loop, run in every round."""
    found = kernel_schedules.parse_loops(
        [
            "  0x0 LB: > { %s8_s1 = sadd.s32 1, %s8_s0 /* iteration index, stage = 1 */ }",
            "  0x1 LB: >> { %s9_s1 = sadd.s32 1, %s9_s0 }",
            "  0x2   : > { %s5 = sshll.u32 (%p1), %s4, 4 }",
            "  0x3   : >> { %p1 = scmp.ge.s32.totalorder %s9_s1, 5 /* loop exit test */ }",
            "  0x4   : > { %p2 = scmp.ge.s32.totalorder %s8_s1, 10 /* loop exit test */ }",
            "  0x5   : >> { }",
            "  0x6   : > { }",
            "  0x7 LB: >> { }",
            "  0x8   : > { }",
        ]
    )
    (over_grid,) = found.loops
    inner, second = over_grid.loops
    assert (over_grid.bundles, inner.bundles, second.bundles) == (3, 5, 1)
    assert (over_grid.rounds, inner.rounds, second.rounds) == (8, 5, None)


def test_a_kernel_without_a_grid_is_its_bundles() -> None:
    found = kernel_schedules.parse("kernel", "  0x0   :  { }\n  0x1   :  {}\n  0x2   :  { }\n")
    assert (found.grid, found.bundles, found.executed) == (1, 3, 3)


def test_schedules_are_found_by_the_names_of_instructions(tmp_path: Path, data_dir: Path) -> None:
    recorded = data_dir / "compile_report" / "kernel_v5e-final_bundles.txt"
    for name in ("17-pit_attention.2-01-final_bundles.txt", "18-copy.3-01-final_bundles.txt"):
        (tmp_path / name).write_text(recorded.read_text())
    (tmp_path / "17-pit_attention.2-00-schedule-analysis_final_bundles.txt").write_text("")
    found = kernel_schedules.read_folder(tmp_path, ["pit_attention.2", "pit_attention.3"])
    assert list(found) == ["pit_attention.2"]
    assert found["pit_attention.2"].grid == 256
