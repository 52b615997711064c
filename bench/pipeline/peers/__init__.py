"""The peers: they run in the virtual environment `.venv-bench` and know nothing of Refresher but its table."""
