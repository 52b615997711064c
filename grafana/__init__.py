"""The dashboards and what Grafana is provisioned with.

`dashboards/*.json` is what Grafana reads, `make dashboards` writes it from the modules here. Nothing of this is part of
the services: the package that describes Grafana's schema is needed for development only.
"""
