"""The platform on a Kubernetes cluster, as a Pulumi program."""
