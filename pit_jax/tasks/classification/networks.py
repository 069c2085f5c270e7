"""Configurations of the classified network and of its teacher, from the options."""

from typing import Any

from pit_jax.models import zoo
from pit_jax.tasks.classification.config import ClassificationConfig

# Value of `distillation.teacher_weights` for a teacher with initial parameters, to test a machine.
UNTRAINED = "untrained"


def network_of(config: ClassificationConfig, num_classes: int) -> Any:
    """The network's configuration, for a data set of `num_classes` classes.

    Raises:
      ValueError: fewer classes are configured than the data set has, or an option is wrong.
    """
    classes = config.model.num_classes or num_classes
    if classes < num_classes:
        raise ValueError(
            f"config.model.num_classes={classes} is fewer than the {num_classes} classes of "
            f"{config.data.name}"
        )
    return zoo.model_config(
        config.model.name,
        image_size=config.model.image_size,
        num_classes=classes,
        drop_path_rate=config.model.drop_path_rate,
        **config.model.options,
    )


def teacher_of(config: ClassificationConfig, student: Any) -> Any | None:
    """The teacher's configuration; None without distillation.

    Raises:
      ValueError: the student has no distillation head, or the teacher's weights are not set.
    """
    options = config.distillation
    if options.kind == "none":
        return None
    if not getattr(student, "distilled", False):
        name = f"{config.model.name}_distilled"
        fitting = name if name in zoo.rows() else "a *_distilled model"
        raise ValueError(
            f"config.distillation.kind={options.kind!r} needs a student with a distillation head, "
            f"which {config.model.name} does not have: set config.model.name to {fitting}"
        )
    if options.teacher_weights == UNTRAINED and config.data.name != "synthetic":
        raise ValueError(
            f"config.distillation.teacher_weights={UNTRAINED!r} is for config.data.name="
            f"'synthetic' alone, found {config.data.name!r}: an untrained teacher has nothing to "
            "teach"
        )
    if not options.teacher_weights:
        raise ValueError(
            "config.distillation.teacher_weights is not set: the papers' teacher is "
            "'hf:timm/regnety_160.deit_in1k' (name that tag: the plain name is another set of "
            "weights), or regnety_160-a5fe301d.pth of the DeiT authors by way of "
            "convert_torch_weights.py --model=regnety_160"
        )
    sizes = {"image_size": config.model.image_size, "num_classes": student.num_classes}
    return zoo.model_config(options.teacher, **{**sizes, **options.teacher_options})
