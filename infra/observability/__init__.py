"""What is seen of a stack: Prometheus, its rules, Grafana's dashboards."""
