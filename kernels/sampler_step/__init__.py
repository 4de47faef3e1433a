"""One reverse step of the sampler, in one launch."""

from .api import sampler_step, step_parts
from .spec import StepRow

__all__ = ["StepRow", "sampler_step", "step_parts"]
