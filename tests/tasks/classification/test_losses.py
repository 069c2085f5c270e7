"""Losses and their gradients equal PyTorch's formulas on given logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from pit_jax.tasks.classification.losses import cross_entropy, distillation_loss
from pit_jax.tasks.classification.mixing import smooth_targets

BATCH, CLASSES = 6, 11
RNG = np.random.default_rng(0)
STUDENT, TOKEN, TEACHER = (4 * RNG.standard_normal((3, BATCH, CLASSES))).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, BATCH)
MIXED = RNG.dirichlet(np.full(CLASSES, 0.3), BATCH).astype(np.float32)


def torch_soft_target(logits: torch.Tensor) -> torch.Tensor:
    return torch.sum(-torch.tensor(MIXED) * functional.log_softmax(logits, dim=-1), dim=-1).mean()


def torch_distillation(
    student: torch.Tensor, token: torch.Tensor, kind: str, alpha: float, temperature: float
) -> torch.Tensor:
    """DeiT's losses by the formulas of the paper. Its code divides the divergence by the number of
    logits, and so does this.
    """
    teacher = torch.tensor(TEACHER)
    if kind == "hard":
        distance = functional.cross_entropy(token, teacher.argmax(dim=1))
    else:
        distance = functional.kl_div(
            functional.log_softmax(token / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="sum",
            log_target=True,
        )
        distance = distance * temperature**2 / token.numel()
    return torch_soft_target(student) * (1 - alpha) + distance * alpha


def test_soft_targets_equal_pytorch():
    logits = torch.tensor(STUDENT, requires_grad=True)
    expected = torch_soft_target(logits)
    expected.backward()
    found, gradient = jax.value_and_grad(cross_entropy)(jnp.asarray(STUDENT), jnp.asarray(MIXED))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_pytorch(smoothing):
    expected = functional.cross_entropy(
        torch.tensor(STUDENT), torch.tensor(LABELS), label_smoothing=smoothing
    )
    targets = smooth_targets(jnp.asarray(LABELS), CLASSES, smoothing)
    np.testing.assert_allclose(cross_entropy(STUDENT, targets), expected.item(), rtol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=-1), 1.0, rtol=1e-6)
    off = 0 if LABELS[0] else 1
    np.testing.assert_allclose(targets[0, off], smoothing / CLASSES, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha", "temperature"),
    [("hard", 0.5, 1.0), ("hard", 0.3, 3.0), ("soft", 0.5, 1.0), ("soft", 0.1, 3.0)],
)
def test_distillation_equals_pytorch(kind, alpha, temperature):
    student, token = (torch.tensor(x, requires_grad=True) for x in (STUDENT, TOKEN))
    expected = torch_distillation(student, token, kind, alpha, temperature)
    expected.backward()

    def loss(student, token, teacher):
        return distillation_loss(
            (student, token), MIXED, teacher, kind=kind, alpha=alpha, temperature=temperature
        )

    found, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(STUDENT, TOKEN, TEACHER)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], student.grad.numpy(), atol=1e-7)
    np.testing.assert_allclose(gradients[1], token.grad.numpy(), atol=1e-7)
    assert not np.any(gradients[2]), "the teacher is not trained"


def test_distilled_model_without_teacher_trains_its_class_head_only():
    outputs = (jnp.asarray(STUDENT), jnp.asarray(TOKEN))
    found, gradients = jax.value_and_grad(cross_entropy)(outputs, jnp.asarray(MIXED))
    assert found == cross_entropy(outputs[0], MIXED)
    assert np.any(gradients[0])
    assert not np.any(gradients[1])


def test_losses_are_computed_in_single_precision():
    outputs = tuple(jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TOKEN))
    teacher = jnp.asarray(TEACHER, jnp.bfloat16)
    exact = tuple(x.astype(jnp.float32) for x in outputs)
    assert cross_entropy(outputs[0], MIXED) == cross_entropy(exact[0], MIXED)
    for kind in ("hard", "soft"):
        found = distillation_loss(outputs, MIXED, teacher, kind=kind)
        assert found.dtype == jnp.float32
        assert found == distillation_loss(exact, MIXED, teacher.astype(jnp.float32), kind=kind)


def test_far_logits_stay_finite():
    far = jnp.asarray([[1e4, -1e4, 0.0]])
    targets = jnp.asarray([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(cross_entropy(far, targets), 2e4, rtol=1e-6)
    for kind in ("hard", "soft"):
        assert np.isfinite(distillation_loss((far, far), targets, -far, kind=kind))


def test_plain_student_is_refused():
    with pytest.raises(ValueError, match=r"a student with a distillation head.*pit_s_distilled"):
        distillation_loss(jnp.asarray(STUDENT), MIXED, TEACHER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sof"}, "unknown distillation 'sof'; did you mean 'soft'"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\], found 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss((STUDENT, TOKEN), MIXED, TEACHER, **options)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected targets of shape \(6, 11\).*found \(6,\)"):
        cross_entropy(jnp.asarray(STUDENT), jnp.asarray(LABELS))
    with pytest.raises(ValueError, match=r"the teacher's logits are \(6, 10\), the student's"):
        distillation_loss((STUDENT, TOKEN), MIXED, jnp.asarray(TEACHER[:, 1:]))
