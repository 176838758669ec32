"""cria on Kubernetes: what a node needs, the checkpoints of the kubelet, and their archives."""
