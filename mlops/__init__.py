"""The kernel that the parts share: contract, bundle, attestations, release log, store, log schema."""
