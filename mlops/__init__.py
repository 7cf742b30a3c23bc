"""The kernel that the parts share: contract, bundle, statements, release log, store, log schema."""
