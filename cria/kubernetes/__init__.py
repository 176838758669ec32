"""cria on Kubernetes: the kubelet's checkpoint API, checkpoint archives, and what a node needs."""
