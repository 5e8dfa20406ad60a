"""`persona mark` from a checkout: python -m scripts.mark --help"""

import sys

from persona_core.cli.mark import main

if __name__ == "__main__":
    sys.exit(main())
