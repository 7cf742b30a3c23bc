"""The `mlops` command: the only place that imports every part."""

from mlops import forget_other_programs

IGNORED = forget_other_programs()
