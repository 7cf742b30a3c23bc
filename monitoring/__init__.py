"""Watching what was released: the prediction log joined with its outcomes."""
