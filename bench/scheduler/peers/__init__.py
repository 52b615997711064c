"""The peer: it runs in the virtual environment `.venv-bench`."""
