"""Run a whole system: `python -m services.embedded`, which is what `refresher up` becomes."""

import sys

from services.embedded import supervisor
from services.embedded.program import data_directory

if __name__ == "__main__":
    sys.exit(supervisor.main(data_directory()))
