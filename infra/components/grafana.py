from infra.components.prometheus import FILES
from infra.ports import PORTS
from infra.workload import Workload, container, env, port, probe

_QUIET = {
    "GF_ANALYTICS_REPORTING_ENABLED": "false",
    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
    "GF_PLUGINS_PREINSTALL_DISABLED": "true",
    "GF_USERS_ALLOW_SIGN_UP": "false",
}


def dashboards() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted((FILES / "grafana" / "dashboards").glob("*.json"))}


class Grafana(Workload):
    """Dashboards from files; changes made in the browser are lost with the pod."""

    user = 472  # of the image

    def create(self) -> None:
        number = PORTS["grafana"]
        datasource, provider = (
            (FILES / "grafana" / f"{kind}.yaml").read_text("utf-8") for kind in ("datasource", "provider")
        )
        self.service("http")
        self.volume("data")
        self.volume("scratch")
        self.volume("datasources", self.config_map(f"{self.name}-datasources", {"prometheus.yaml": datasource}))
        self.volume("providers", self.config_map(f"{self.name}-providers", {"files.yaml": provider}))
        self.volume("dashboards", self.config_map(f"{self.name}-dashboards", dashboards()))
        server = container(
            "grafana",
            self.settings.images.third_party("grafana"),
            cpu="50m",
            memory="512Mi",
            env=env(_QUIET, {"GF_SECURITY_ADMIN_PASSWORD": ("grafana", "password")}),
            ports=[port("http", number)],
            mounts={
                "/var/lib/grafana": "data",
                "/tmp": "scratch",
                "/etc/grafana/provisioning/datasources": "datasources",
                "/etc/grafana/provisioning/dashboards": "providers",
                "/etc/dashboards": "dashboards",
            },
            startup_probe=probe("/api/health", number, 3, 60),
            readiness_probe=probe("/api/health", number, 10),
            liveness_probe=probe("/api/health", number, 30, 4),
        )
        self.deployment(self.pod(server))
