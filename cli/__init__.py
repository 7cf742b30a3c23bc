"""The `mlops` command: the only place that imports every part."""
