"""The HTTP service that answers predictions from released bundles."""
