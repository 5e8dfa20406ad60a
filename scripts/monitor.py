"""`persona monitor` from a checkout: python -m scripts.monitor --help"""

import sys

from persona_core.cli.monitor import main

if __name__ == "__main__":
    sys.exit(main())
