"""Reading compiled programs, on excerpts of recorded ones."""

from pathlib import Path

import pytest

from pit_jax.compile_report import hlo


@pytest.fixture(scope="module")
def module(data_dir: Path) -> hlo.Module:
    """A program of four v5e: product, kernel, GELU, kernel again, loop of five rounds, mean."""
    return hlo.Module((data_dir / "compile_report" / "step.hlo.txt").read_text())


def test_loops_run_as_often_as_their_condition_says(module: hlo.Module) -> None:
    times = {step.instruction.name: step.times for step in module.steps}
    assert times["convolution_sine_fusion.2"] == 5
    assert times["fusion.60"] == times["all-reduce"] == 1
    assert not module.unknown_loops


def test_a_loop_of_unknown_length_is_named_and_counts_once(module: hlo.Module) -> None:
    changed = hlo.Module(module.text.replace("direction=LT", "direction=NE"))
    times = {step.instruction.name: step.times for step in changed.steps}
    assert times["convolution_sine_fusion.2"] == 1
    assert changed.unknown_loops == ["while.9"]


def test_estimates_are_of_what_runs_and_not_of_what_is_fused(module: hlo.Module) -> None:
    cycles = {step.instruction.name: step.instruction.cycles for step in module.steps}
    assert cycles["fusion.60"] == 5945
    assert cycles["convolution_sine_fusion.2"] == 6286
    assert cycles["all-reduce"] is None
    assert "convolution.5" not in cycles
    total = 5945 + 3047 + 2 * 100 + 8697 + 2 * 100 + 4514 + 5 * (2663 + 6286)
    assert sum(step.times * (step.instruction.cycles or 0) for step in module.steps) == total


def test_sources_are_the_innermost_lines_of_the_package(module: hlo.Module) -> None:
    steps = {step.instruction.name: step.instruction for step in module.steps}
    assert module.location(steps["fusion.60"]) == "pit_jax/models/k.py:22 f.local"
    kernel = "pit_jax/models/k.py:18 attn"
    assert module.location(steps["pit_attention_forward_test.3"]) == kernel
    assert module.location(steps["fusion.60"], package="optax") == ""
    assert module.location(steps["copy.28"]) == ""  # XLA's own


def test_kernels_are_told_from_other_calls(module: hlo.Module) -> None:
    kernels = [step.instruction for step in module.steps if step.instruction.is_kernel]
    assert [kernel.name for kernel in kernels] == [
        "pit_attention_forward_test.2",
        "pit_attention_forward_test.3",
    ]
    assert kernels[0].kernel_body == kernels[1].kernel_body != ""


def test_arrays_of_a_core_are_not_stored(module: hlo.Module) -> None:
    shapes = {(array.dtype, array.shape) for array in module.stored}
    assert ("bf16", (8, 200, 48)) in shapes  # the argument
    steps = {step.instruction.name: step.instruction for step in module.steps}
    assert not steps["fusion.60"].arrays[0].in_memory
    assert steps["param.4"].arrays[0].in_memory


def test_an_instruction_is_taken_apart() -> None:
    line = (
        "  ROOT %dot.3 = (bf16[8,730]{1,0:T(8,128)(2,1)S(1)}, f32[]) custom-call(%a.1, %b-2.x), "
        'custom_call_target="x", metadata={op_name="jit(f)/transpose(jvp(g))/dot"}'
    )
    found = hlo.parse_instruction(line)
    assert found is not None
    assert (found.name, found.opcode) == ("dot.3", "custom-call")
    assert found.operands == ("a.1", "b-2.x")
    assert found.is_backward
    assert found.arrays == (hlo.Array("bf16", (8, 730), False), hlo.Array("f32", (), True))
    assert [array.bytes for array in found.arrays] == [11680, 4]
    assert hlo.parse_instruction("}") is None


def test_of_a_condition_the_longest_branch_counts() -> None:
    cost = 'metadata={}, backend_config={"window_config":{"estimated_cycles":"%d"}}'
    text = f"""
%short (p: f32[8]) -> f32[8] {{
  ROOT %a = f32[8]{{0}} add(%p, %p), {cost % 10}
}}

%long (p: f32[8]) -> f32[8] {{
  ROOT %b = f32[8]{{0}} add(%p, %p), {cost % 70}
}}

ENTRY %main (p: s32[], x: f32[8]) -> f32[8] {{
  ROOT %c = f32[8]{{0}} conditional(%p, %x, %x), branch_computations={{%short, %long}}
}}
"""
    assert [step.instruction.cycles for step in hlo.Module(text).steps] == [70]


@pytest.mark.parametrize(
    ("attribute", "grouped"),
    [("feature_group_count=144", True), ("batch_group_count=2", True), ("", False)],
)
def test_grouped_convolutions_are_found_inside_fusions(attribute: str, grouped: bool) -> None:
    text = f"""
%fused (p: f32[8]) -> f32[8] {{
  ROOT %conv = f32[8]{{0}} convolution(%p, %p), dim_labels=b01f_01io->b01f, {attribute}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  ROOT %c = f32[8]{{0}} fusion(%p), kind=kOutput, calls=%fused
}}
"""
    assert hlo.Module(text).grouped_convolutions == (["conv"] if grouped else [])
