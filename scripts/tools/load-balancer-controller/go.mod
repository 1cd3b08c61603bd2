module blueprint/tools/load-balancer-controller

go 1.26.0

// 3.2.2: Go takes no tag of a module whose path has not its major version.
require sigs.k8s.io/aws-load-balancer-controller v0.0.0-20260423195125-93ff3b5fdaad
