PORTS = {
    "serving": 8080,
    "proxy": 8080,
    "proxy-metrics": 8405,
    "bucket": 7070,
    "database": 5432,
    "tracking": 5000,
    "controller": 9100,
    "approver": 9101,
    "prometheus": 9090,
    "alertmanager": 9093,
    "grafana": 3000,
    "kube-state-metrics": 8080,
}
