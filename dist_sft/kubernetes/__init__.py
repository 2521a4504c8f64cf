"""The Kubernetes manifest of a run, for KubeRay's operator."""
