"""`persona import` from a checkout: python -m scripts.import_results --help"""

import sys

from persona_core.cli.import_results import main

if __name__ == "__main__":
    sys.exit(main())
